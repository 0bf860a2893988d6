package main

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	derpPort = 3443
	stunPort = 3478
)

// relay starts the DERP relay and the STUN server. Their map has a name and no address: the server stands on several networks, and each
// node resolves the name to the address on its own.
func relay(host string) (*tailcfg.DERPMap, error) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: derpPort})
	if err != nil {
		return nil, err
	}
	quiet := func(string, ...any) {}
	server := httptest.NewUnstartedServer(derpserver.Handler(derpserver.New(key.NewNode(), quiet)))
	server.Listener.Close()
	server.Listener = listener
	// The relay's protocol takes the connection over, which HTTP/2 does not allow.
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	server.StartTLS()
	stun := stunserver.New(context.Background())
	go func() { log.Fatal(stun.ListenAndServe(net.JoinHostPort("", "3478"))) }()

	node := &tailcfg.DERPNode{
		Name: "1a", RegionID: 1, HostName: host, STUNPort: stunPort, DERPPort: derpPort, InsecureForTests: true,
	}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "test", RegionName: "test", Nodes: []*tailcfg.DERPNode{node}}
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: region}}, nil
}

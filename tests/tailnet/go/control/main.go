// control is a FAKE of Tailscale's control plane for tests: one tailnet in memory, made of Tailscale's own testcontrol package, with a
// DERP relay and a STUN server. What a person does in the admin console is done over HTTP on a Unix socket (admin.go).
// The keys, tags and logins that it wants are rules of its own (tailnet.go), modelled on what the true control plane answers.
package main

import (
	"flag"
	"log"
	"net/http"
	"time"
)

func main() {
	host := flag.String("host", "control", "name by which nodes reach this server, on each of their networks")
	suffix := flag.String("suffix", "tail0001.ts.net", "MagicDNS suffix of the tailnet")
	certificate := flag.String("certificate", "/pki/tls.crt", "certificate of -host")
	certificateKey := flag.String("certificate-key", "/pki/tls.key", "its key")
	socket := flag.String("admin", "/admin/control.sock", "Unix socket of the admin API")
	flag.Parse()

	derpMap, err := relay(*host)
	if err != nil {
		log.Fatal(err)
	}
	tailnet := newTailnet("https://"+*host, *suffix, derpMap)
	go func() { log.Fatal(serveAdmin(*socket, tailnet)) }()
	// After its first handshake tailscaled dials port 443 and no other.
	server := &http.Server{Addr: ":443", Handler: tailnet.server, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServeTLS(*certificate, *certificateKey))
}

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"time"

	"tailscale.com/tailcfg"
)

// settings are what the tailnet's owner sets in the admin console and in the policy. What is left out stays as it is.
type settings struct {
	HTTPS    *bool              `json:"https"`
	Approval *bool              `json:"approval"` // new machines wait until they are approved
	Keys     map[string]bool    `json:"keys"`     // auth key → whether it may be used again; replaces all keys
	Clients  []string           `json:"clients"`  // secrets of OAuth clients
	Tags     []string           `json:"tags"`     // the tags that have an owner
	AppCaps  tailcfg.PeerCapMap `json:"app_caps"` // granted to everybody
}

// serveAdmin answers on a Unix socket, so that nothing on the tailnet's networks reaches it.
func serveAdmin(socket string, t *tailnet) error {
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, t.server.AllNodes()) })
	mux.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) {
		t.mu.Lock()
		defer t.mu.Unlock()
		writeJSON(w, map[string]any{"orders": t.orders, "unknown": t.unknown, "minted": t.minted})
	})
	mux.HandleFunc("POST /settings", take(t.set))
	mux.HandleFunc("POST /jail", take(t.jail))
	mux.HandleFunc("POST /expire", take(t.expire))
	mux.HandleFunc("POST /login", take(t.login))
	mux.HandleFunc("POST /approve", take(t.approve))
	return http.Serve(listener, mux)
}

// take decodes a request's body for handle, which answers with an error's text or "".
func take[T any](handle func(T) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body T
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		} else if sentence := handle(body); sentence != "" {
			http.Error(w, sentence, http.StatusNotFound)
		}
	}
}

func (t *tailnet) set(new settings) string {
	t.mu.Lock()
	if new.Keys != nil {
		t.keys = new.Keys
	}
	if new.Clients != nil {
		t.clients = new.Clients
	}
	if new.AppCaps != nil {
		t.appCaps = new.AppCaps
	}
	t.mu.Unlock()
	t.locked(func() {
		if new.Tags != nil {
			t.server.TagOwners = map[string][]string{}
			for _, tag := range new.Tags {
				t.server.TagOwners[tag] = []string{tag}
			}
		}
		if new.Approval != nil {
			t.server.RequireMachineAuth = *new.Approval
		}
	})
	if new.HTTPS != nil {
		t.setHTTPS(*new.HTTPS)
	}
	t.pushAll()
	return ""
}

type pair struct {
	Node   string `json:"node"`
	Peer   string `json:"peer"`
	Jailed bool   `json:"jailed"`
}

// jail does to a peer what a policy without a grant does: it may answer this node, but open no connection to it.
func (t *tailnet) jail(request pair) string {
	node, peer := t.find(request.Node), t.find(request.Peer)
	if node == nil || peer == nil {
		return "no such node"
	}
	t.server.SetJailed(node.Key, peer.Key, request.Jailed)
	return ""
}

type one struct {
	Node string `json:"node"`
}

// expire ends the validity of a node's key: it has to log in again.
func (t *tailnet) expire(request one) string {
	node := t.find(request.Node)
	if node == nil {
		return "no such node"
	}
	node.KeyExpiry = time.Now().Add(-time.Minute)
	t.server.UpdateNode(node)
	return ""
}

func (t *tailnet) approve(request one) string {
	node := t.find(request.Node)
	if node == nil || !t.server.CompleteDeviceApproval("", "/admin", &node.Key) {
		return "no such node"
	}
	return ""
}

type link struct {
	URL string `json:"url"`
}

// login is what a person does who opens a login link.
func (t *tailnet) login(request link) string {
	if !t.server.CompleteAuth(request.URL) {
		return "no such login link"
	}
	return ""
}

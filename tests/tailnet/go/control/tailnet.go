package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/util/set"
)

// known are the paths that testcontrol answers. It panics on any other, in a goroutine of its own, so those must not get to it.
var known = []string{"/key", "/ts2021", "/generate_204", "/machine/map", "/machine/register", "/machine/set-dns", "/machine/update-health"}

// tailnet is a testcontrol server with an owner: keys that it made, tags that it allows, HTTPS on or off.
type tailnet struct {
	server *testcontrol.Server
	suffix string

	mu       sync.Mutex
	keys     map[string]bool // auth key → whether it may be used again
	used     set.Set[string] // keys that were for one use
	clients  []string        // secrets of OAuth clients
	minted   []minted        // keys that they had made
	orders   []string        // names for which a dns-01 record was asked
	unknown  []string        // paths that testcontrol does not know
	appCaps  tailcfg.PeerCapMap
	loggedIn set.Set[key.NodePublic]
}

func newTailnet(url, suffix string, derpMap *tailcfg.DERPMap) *tailnet {
	t := &tailnet{suffix: suffix, keys: map[string]bool{}}
	t.loggedIn.Make()
	t.used.Make()
	t.server = &testcontrol.Server{
		ExplicitBaseURL: url,
		MagicDNSDomain:  suffix,
		DNSConfig:       &tailcfg.DNSConfig{Proxied: true, Domains: []string{suffix}},
		DERPMap:         derpMap,
		AllOnline:       true,
		RequireAuth:     true,
		TagOwners:       map[string][]string{},
		// testcontrol's own default would let every node use Funnel.
		DefaultNodeCapabilities: &tailcfg.NodeCapMap{tailcfg.CapabilityHTTPS: nil},
		OnSetDNS: func(request *tailcfg.SetDNSRequest) error {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.orders = append(t.orders, strings.TrimPrefix(request.Name, "_acme-challenge."))
			return nil
		},
	}
	t.guard()
	return t
}

// private is a field of testcontrol's server that has no method: there is none for switching HTTPS, nor for letting a key's bearer in.
func private[T any](server *testcontrol.Server, name string) *T {
	field := reflect.ValueOf(server).Elem().FieldByName(name)
	if field.Type() != reflect.TypeFor[T]() {
		log.Fatalf("testcontrol.Server.%s is a %v now", name, field.Type())
	}
	return (*T)(unsafe.Pointer(field.UnsafeAddr()))
}

// locked runs change while testcontrol reads nothing.
func (t *tailnet) locked(change func()) {
	mu := private[sync.Mutex](t.server, "mu")
	mu.Lock()
	defer mu.Unlock()
	change()
}

// pushAll sends every node its netmap again.
func (t *tailnet) pushAll() { t.server.SetGlobalAppCaps(t.appCaps) }

// guard puts itself before testcontrol's own handlers, also for what comes inside the encrypted connection.
func (t *tailnet) guard() {
	t.server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/generate_204", nil)) // makes the mux
	mux := private[*http.ServeMux](t.server, "mux")
	inner := *mux
	*mux = http.NewServeMux()
	(*mux).HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/machine/register":
			t.register(w, r, inner)
		case strings.HasPrefix(r.URL.Path, "/api/v2/"):
			t.api(w, r)
		case slices.Contains(known, r.URL.Path) || strings.HasPrefix(r.URL.Path, "/c2n/"):
			inner.ServeHTTP(w, r)
		default:
			log.Printf("unknown: %s %s", r.Method, r.URL.Path)
			t.mu.Lock()
			t.unknown = append(t.unknown, r.URL.Path)
			t.mu.Unlock()
			http.NotFound(w, r)
		}
	})
}

// register decides who may join: a node that is known, a valid key, or a login link that somebody completes.
func (t *tailnet) register(w http.ResponseWriter, r *http.Request, inner http.Handler) {
	var request tailcfg.RegisterRequest
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	if err != nil || request.Hostinfo == nil {
		http.Error(w, "not a registration", http.StatusBadRequest)
		return
	}
	if !request.Expiry.IsZero() && request.Expiry.Before(time.Now()) {
		t.logout(request.NodeKey)
	} else if sentence := t.refusal(&request); sentence != "" {
		log.Printf("refused %s: %s", request.Hostinfo.Hostname, sentence)
		writeJSON(w, tailcfg.RegisterResponse{Error: sentence})
		return
	}
	if !t.https() { // with HTTPS off testcontrol has no suffix, while nodes keep their full names
		request.Hostinfo.Hostname += "." + t.suffix + "."
		if body, err = json.Marshal(request); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	inner.ServeHTTP(w, r)
	t.renewed(&request)
}

// renewed ends the expiry of a node that logged in again, whose new key took over what the former one had.
func (t *tailnet) renewed(request *tailcfg.RegisterRequest) {
	t.locked(func() {
		nodes := *private[map[key.NodePublic]*tailcfg.Node](t.server, "nodes")
		node := nodes[request.NodeKey]
		authed := private[set.Set[key.NodePublic]](t.server, "nodeKeyAuthed").Contains(request.NodeKey)
		if node == nil || !authed || (request.Followup == "" && request.OldNodeKey.IsZero()) {
			return
		}
		node.KeyExpiry = time.Time{}
		maps.DeleteFunc(nodes, func(other key.NodePublic, one *tailcfg.Node) bool { return one.ID == node.ID && other != node.Key })
	})
	t.pushAll()
}

// refusal is the sentence by which the control plane refuses, or nothing. A valid key logs its bearer in.
func (t *tailnet) refusal(request *tailcfg.RegisterRequest) string {
	for _, tag := range request.Hostinfo.RequestTags {
		if _, ok := t.server.TagOwners[tag]; !ok {
			return fmt.Sprintf("requested tags [%s] are invalid or not permitted", tag)
		}
	}
	if request.Auth == nil || request.Auth.AuthKey == "" {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loggedIn.Contains(request.NodeKey) {
		return ""
	}
	// The sentences are those that users of the true control plane have reported.
	authKey := request.Auth.AuthKey
	reusable, valid := t.keys[authKey]
	switch {
	case !strings.HasPrefix(authKey, "tskey-"):
		return "invalid key: unable to validate API key"
	case t.used.Contains(authKey):
		return fmt.Sprintf("invalid key: API key %s not valid", strings.TrimPrefix(authKey, "tskey-auth-"))
	case !valid:
		return "invalid key: API key does not exist"
	case !reusable:
		t.used.Add(authKey)
	}
	t.loggedIn.Add(request.NodeKey)
	t.locked(func() {
		authed := private[set.Set[key.NodePublic]](t.server, "nodeKeyAuthed")
		authed.Make()
		authed.Add(request.NodeKey)
	})
	return ""
}

// logout leaves the machine in the list, without a key and under another name, so that a later node can have its name.
func (t *tailnet) logout(nodeKey key.NodePublic) {
	t.mu.Lock()
	t.loggedIn.Delete(nodeKey)
	t.mu.Unlock()
	t.locked(func() { private[set.Set[key.NodePublic]](t.server, "nodeKeyAuthed").Delete(nodeKey) })
	if node := t.server.Node(nodeKey); node != nil {
		node.Name = fmt.Sprintf("logged-out-%d.%s.", node.ID, t.suffix)
		node.KeyExpiry = time.Now().Add(-time.Minute)
		t.server.UpdateNode(node)
	}
}

func (t *tailnet) https() bool {
	on := false
	t.locked(func() { on = t.server.MagicDNSDomain != "" })
	return on
}

// setHTTPS switches the tailnet's HTTPS certificates: without them nodes have names but no certificate domains.
func (t *tailnet) setHTTPS(on bool) {
	t.locked(func() {
		t.server.MagicDNSDomain = ""
		if on {
			t.server.MagicDNSDomain = t.suffix
		}
	})
	t.pushAll()
}

// find gives the newest node of this name that has not logged out.
func (t *tailnet) find(name string) *tailcfg.Node {
	var found *tailcfg.Node
	for _, node := range t.server.AllNodes() {
		if strings.HasPrefix(node.Name, name+".") && (found == nil || node.ID > found.ID) {
			found = node
		}
	}
	return found
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Print(err)
	}
}

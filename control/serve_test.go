package control

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

const webAt = "127.0.0.1:9480"

// TestWeb: the status page is served on the host, with what the daemon knows.
func TestWeb(t *testing.T) {
	const requests = 5
	w := newWorld(t, testbed.TopologyOptions{})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr", 1, 0), append(small, "web_listen: "+webAt)...))
	w.ask(w.VIP(testbed.V4, 0), requests)
	if _, err := w.pageAt(webAt, "/"); err != nil {
		t.Error(err)
	}
	type answer struct {
		Status   admin.Status `json:"status"`
		Services []struct {
			Name  string `json:"name"`
			Flows uint64 `json:"flows"`
			Bytes uint64 `json:"bytes_to"`
		} `json:"services"`
		NICs []struct {
			Name string `json:"name"`
			Up   bool   `json:"up"`
		} `json:"nics"`
	}
	var got answer
	body, err := w.pageAt(webAt, "/api/overview")
	if err == nil {
		err = json.Unmarshal([]byte(body), &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	flows := uint64(0)
	for _, s := range got.Services {
		if s.Name == "web-full-nat-v4-0" && s.Bytes > 0 {
			flows = s.Flows
		}
	}
	if flows != requests || len(got.NICs) == 0 || !got.NICs[0].Up {
		t.Errorf("%d flows, want %d: %s", flows, requests, body)
	}
	if got.Status.PID != os.Getpid() || got.Status.Services != len(got.Services) {
		t.Errorf("%d services, status %+v", len(got.Services), got.Status)
	}
	d.end()
	if _, err := w.pageAt(webAt, "/"); err == nil {
		t.Error("a page after the end")
	}
	w.clean()
}

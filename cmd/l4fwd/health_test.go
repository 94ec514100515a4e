package main

import (
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
)

// What the last check found is not shown as if it were of now when none can be made.
func TestUncheckedIsShown(t *testing.T) {
	h := admin.BackendHealth{State: health.Up, Reason: "connected", Unchecked: "too many open files"}
	var b strings.Builder
	healthTable(&b, []admin.CheckedBackend{{Service: "web", Health: h}}, false)
	if !strings.Contains(b.String(), "could not be made: too many open files") || strings.Contains(b.String(), "connected") {
		t.Error(b.String())
	}
	b.Reset()
	backendsTable(&b, []admin.BackendInfo{{Service: "web", State: admin.BackendUp, Health: &h}})
	if !strings.Contains(b.String(), "cannot be checked: too many open files") {
		t.Error(b.String())
	}
}

package control

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
)

// TestCaptureAfterCapture: who ends a capture and begins another does not meet with the
// first, of whose end the daemon may hear as late as of the other's beginning.
func TestCaptureAfterCapture(t *testing.T) {
	d, err := New(config.Defaults(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.capturing <- struct{}{} // the first
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	second := make(chan error, 1)
	go func() { second <- d.capture(ctx, admin.CaptureRequest{}, nil) }()
	time.Sleep(50 * time.Millisecond)
	<-d.capturing // the first hears of its end
	for end := time.Now().Add(captureEnds); len(d.capturing) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) { // in the middle of its work, as there is no loop
		t.Errorf("the second: %v", err)
	}
	if len(d.capturing) > 0 {
		t.Error("it has not let go")
	}
}

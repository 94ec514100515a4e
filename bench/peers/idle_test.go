package peers

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := newNetwork(filepath.Join(t.TempDir(), "n"), CPUs{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	p, err := n.newProbe()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.wait(100 * time.Millisecond); err != nil { // nobody will come
		t.Fatal(err)
	}
	if took, err := p.run(ctx, 1, 0); !errors.Is(err, errUnheard) {
		t.Errorf("without a forwarder: %v, %v", took, err)
	}
	if err := p.wait(probePatience); err != nil {
		t.Fatal(err)
	}
	nft := &kernel{nft: true}
	if err := nft.start(ctx, n, idle); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := nft.stop(); err != nil {
			t.Error(err)
		}
	}()
	const count, pause = 3, 20 * time.Millisecond
	from := time.Now()
	took, err := p.run(ctx, count, pause)
	if err != nil {
		t.Fatal(err)
	}
	if all := time.Since(from); all < count*pause {
		t.Errorf("%d pauses of %v took %v", count, pause, all)
	}
	if len(took) != count {
		t.Errorf("took %v", took)
	}
	for _, µs := range took {
		if µs <= 0 || µs > float64(probePatience/time.Microsecond) {
			t.Errorf("took %v", took)
		}
	}
	cancel()
	if took, err := p.run(ctx, count, pause); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v, %v", took, err)
	}
}

package conntrack

import (
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestEntryLayout pins the layout a successor process relies on. A change here
// needs a new layoutVersion.
func TestEntryLayout(t *testing.T) {
	var e Entry
	got := map[string]uintptr{
		"Client": unsafe.Offsetof(e.Client), "ClientPort": unsafe.Offsetof(e.ClientPort),
		"LocalPort": unsafe.Offsetof(e.LocalPort), "Service": unsafe.Offsetof(e.Service),
		"Backend": unsafe.Offsetof(e.Backend), "Local": unsafe.Offsetof(e.Local),
		"Proto": unsafe.Offsetof(e.Proto), "Mode": unsafe.Offsetof(e.Mode),
		"SeqDelta": unsafe.Offsetof(e.SeqDelta), "State": unsafe.Offsetof(e.State),
		"Flags": unsafe.Offsetof(e.Flags), "AddrSum": unsafe.Offsetof(e.AddrSum),
		"PortSum": unsafe.Offsetof(e.PortSum), "HopID": unsafe.Offsetof(e.HopID),
		"HopGen": unsafe.Offsetof(e.HopGen), "Expires": unsafe.Offsetof(e.Expires),
		"wheelNext": unsafe.Offsetof(e.wheelNext), "wheelPrev": unsafe.Offsetof(e.wheelPrev),
		"ServerNext": unsafe.Offsetof(e.ServerNext), "fwdHash": unsafe.Offsetof(e.fwdHash),
		"revHash": unsafe.Offsetof(e.revHash), "Win": unsafe.Offsetof(e.Win),
		"WScale": unsafe.Offsetof(e.WScale), "wheelSlot": unsafe.Offsetof(e.wheelSlot),
		"Created": unsafe.Offsetof(e.Created), "Packets": unsafe.Offsetof(e.Packets),
		"Bytes": unsafe.Offsetof(e.Bytes), "size": unsafe.Sizeof(e),
	}
	want := map[string]uintptr{
		"Client": 0, "ClientPort": 16, "LocalPort": 18, "Service": 20, "Backend": 24, "Local": 28,
		"Proto": 30, "Mode": 31, "SeqDelta": 32, "State": 36, "Flags": 37, "AddrSum": 38, "PortSum": 40,
		"HopID": 42, "HopGen": 44, "Expires": 48, "wheelNext": 52, "wheelPrev": 56, "ServerNext": 60,
		"fwdHash": 64, "revHash": 68, "Win": 72, "WScale": 96, "wheelSlot": 98, "Created": 100,
		"Packets": 104, "Bytes": 112, "size": 128,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestMemoryBudget(t *testing.T) {
	for _, flows := range []uint32{1 << 16, 1 << 20, 10_000_000} {
		l := newLayout(flows, flows/4)
		per := float64(l.size) / float64(flows)
		t.Logf("%d flows: %d MB, %.1f bytes each", flows, l.size/1e6, per)
		if per > 192 {
			t.Errorf("%d flows: %.1f bytes each", flows, per)
		}
		if per > 172.5 && flows > 1<<20 {
			t.Errorf("%d flows: %.1f bytes each, the documents say 172", flows, per)
		}
		if l.offBucket%64 != 0 || l.offFlow%128 != 0 {
			t.Errorf("buckets at %d, entries at %d: not on cache lines", l.offBucket, l.offFlow)
		}
	}
}

func TestOptions(tt *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"no flows", Options{}},
		{"negative", Options{Flows: -1}},
		{"too many", Options{Flows: maxFlows + 1}},
		{"more half-open than flows", Options{Flows: 10, HalfOpen: 11}},
		{"negative half-open", Options{Flows: 10, HalfOpen: -1}},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			if _, err := New(c.o); !errors.Is(err, ErrOptions) {
				tt.Errorf("got %v", err)
			}
		})
	}
	t := newTest(tt, Options{Flows: 100})
	if t.Cap() != 100 || t.HalfOpenCap() != 25 {
		tt.Errorf("capacity %d, half-open %d", t.Cap(), t.HalfOpenCap())
	}
}

func TestRandomSecret(tt *testing.T) {
	var keys [2]keys
	for i := range keys {
		t, err := New(Options{Flows: 1, Lazy: true})
		if err != nil {
			tt.Fatal(err)
		}
		keys[i] = t.keys
		if err := t.Close(); err != nil {
			tt.Fatal(err)
		}
	}
	if keys[0] == keys[1] {
		tt.Error("two tables share a secret nobody gave")
	}
}

// TestBacking takes real memory, as the daemon does.
func TestBacking(tt *testing.T) {
	t, err := New(Options{Flows: 50_000, Name: "backing"})
	if err != nil {
		tt.Fatal(err)
	}
	tt.Log(t.Backing())
	if !strings.HasPrefix(t.Backing(), "memfd, ") {
		tt.Errorf("backing %q", t.Backing())
	}
	name, err := os.Readlink("/proc/self/fd/" + itoa(int(t.FD().Fd())))
	if err != nil || !strings.Contains(name, "l4fwd-backing") {
		tt.Errorf("descriptor is %q, %v", name, err)
	}
	if err := t.FD().Truncate(0); err == nil {
		tt.Error("the memory could be cut off")
	}
	for range 2 { // the second Close does nothing
		if err := t.Close(); err != nil {
			tt.Error(err)
		}
	}
	if t.FD() != nil {
		tt.Error("a descriptor after Close")
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// TestAttach hands a table over: everything is found, timers and budget go on.
func TestAttach(tt *testing.T) {
	dir := testDirectory()
	old, err := New(Options{Flows: 1000, Lazy: true, Now: 7})
	if err != nil {
		tt.Fatal(err)
	}
	var refs []Ref
	for i := range 200 {
		e := numbered(i)
		refs = append(refs, mustInsert(tt, old, &e, dir, 100))
		old.SetClock(refs[i], uint32(i)<<24+1)
	}
	old.Remove(refs[3])
	heir, err := Attach(int(old.FD().Fd()))
	if err != nil {
		tt.Fatal(err)
	}
	stats := old.Stats()
	if err := old.Close(); err != nil {
		tt.Fatal(err)
	}
	if heir.Len() != 199 || heir.HalfOpenLen() != 199 || heir.Stats() != stats {
		tt.Errorf("%d flows, %d half-open, %+v", heir.Len(), heir.HalfOpenLen(), heir.Stats())
	}
	for i := range 200 {
		e := numbered(i)
		fwd, rev := tuples(&e, dir)
		r, _, ok := heir.Lookup(&fwd, dir)
		back, d, okBack := heir.Lookup(rev, dir)
		if i == 3 {
			if ok || okBack {
				tt.Error("the removed flow is found")
			}
			continue
		}
		if !ok || !okBack || r != refs[i] || back != r || d != Reply {
			tt.Fatalf("flow %d: %v %v %v %v", i, r, ok, back, okBack)
		}
		if got := heir.Clock(r); got != uint32(i)<<24+1 {
			tt.Fatalf("flow %d: clock %#x", i, got)
		}
	}
	e := numbered(3)
	if r := mustInsert(tt, heir, &e, dir, 101); r != refs[3] {
		tt.Errorf("reused %d, want %d", r, refs[3])
	}
	if n := len(drain(heir, 100+insertTicks+1)); n != 200 {
		tt.Errorf("%d expired", n)
	}
	if err := heir.Close(); err != nil {
		tt.Error(err)
	}
}

func TestDescribe(t *testing.T) {
	const m = 1 << 20
	for want, got := range map[string]string{
		"memfd, 7 MiB populated and collapsed to 2 MiB pages":                     describe(7*m, 6*m, nil),
		"memfd, 9 MiB populated, 2 MiB of it collapsed to 2 MiB pages":            describe(9*m, 2*m, unix.ENOMEM),
		"memfd, 9 MiB populated in 4 KiB pages (MADV_COLLAPSE: invalid argument)": describe(9*m, 0, unix.EINVAL),
		"memfd, 1 MiB populated in 4 KiB pages":                                   describe(m, 0, nil),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestAttachRefuses(tt *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(h *header)
	}{
		{"magic", func(h *header) { h.magic++ }},
		{"version", func(h *header) { h.version++ }},
		{"entry size", func(h *header) { h.entrySize = 64 }},
		{"no flows", func(h *header) { h.flows = 0 }},
		{"more flows than memory", func(h *header) { h.flows *= 2 }},
		{"no half-open", func(h *header) { h.halfOpenMax = 0 }},
		{"half-open above flows", func(h *header) { h.halfOpenMax = h.flows + 1 }},
		{"buckets", func(h *header) { h.buckets-- }},
		{"size", func(h *header) { h.size += pageSize }},
		{"used", func(h *header) { h.used = h.flows + 1 }},
		{"fresh zero", func(h *header) { h.fresh = 0 }},
		{"fresh beyond", func(h *header) { h.fresh = h.flows + 2 }},
		{"free list", func(h *header) { h.free = h.flows + 1 }},
		{"half-open count", func(h *header) { h.halfLen = h.used + 1 }},
		{"no probing", func(h *header) { h.probe = 0 }},
		{"endless probing", func(h *header) { h.probe = maxProbe + 1 }},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTest(tt, Options{Flows: 100})
			c.spoil(t.hdr)
			if _, err := Attach(int(t.FD().Fd())); !errors.Is(err, ErrLayout) {
				tt.Errorf("got %v", err)
			}
		})
	}
	tt.Run("short file", func(tt *testing.T) {
		fd, err := unix.MemfdCreate("short", unix.MFD_CLOEXEC)
		if err != nil {
			tt.Fatal(err)
		}
		if _, err := Attach(fd); !errors.Is(err, ErrLayout) {
			tt.Errorf("got %v", err)
		}
		if err := unix.Close(fd); err != nil {
			tt.Error(err)
		}
	})
	tt.Run("no descriptor", func(tt *testing.T) {
		if _, err := Attach(-1); !errors.Is(err, unix.EBADF) {
			tt.Errorf("got %v", err)
		}
	})
	tt.Run("unmappable", func(tt *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			tt.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		if _, err := Attach(int(r.Fd())); err == nil {
			tt.Error("attached to a pipe")
		}
	})
}

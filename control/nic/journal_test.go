package nic

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if os.Getenv("NIC_TEST_VOID") == "" {
		here, err := inodeOf("/proc/self/ns/pid")
		if err != nil {
			panic(err)
		}
		if here != firstPIDs { // in a container, which has no process of the kernel's own
			firstPIDs, kernelsOwn = here, "/proc/1/ns/net"
		}
	}
	goleak.VerifyTestMain(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memory is a device whose knobs are a map; some refuse to be written, and
// before a write it looks whether the journal already knows.
type memory struct {
	values map[knob]string
	refuse map[knob]bool
	before func(k knob, value string)
}

var errRefused = errors.New("refused")

func (m *memory) read(k knob) (string, error) {
	v, ok := m.values[k]
	if !ok {
		return "", errNoKnob
	}
	return v, nil
}

func (m *memory) write(k knob, v string) error {
	if m.before != nil {
		m.before(k, v)
	}
	if m.refuse[k] {
		return errRefused
	}
	m.values[k] = v
	return nil
}

func freshJournal() *journal {
	return &journal{Version: journalVersion, Name: "eth9", Index: 7, Namespace: 42, Boot: bootID(), PID: os.Getpid(), Owner: self}
}

// TestVLANSettings: tags are kept always, filters are touched only where all VLANs are
// wanted.
func TestVLANSettings(t *testing.T) {
	for all, want := range map[bool]string{false: "on", true: "off"} {
		dev := &memory{values: map[knob]string{vlanStripping: "on", vlanFilter: "on", lro: "off"}}
		a := &Applied{opt: Options{Dir: t.TempDir()}, log: zap.NewNop(), j: freshJournal()}
		must(t, a.apply(dev, Settings{KeepVLANTags: true, AllVLANs: all, NoLRO: true}.wishes()))
		if dev.values[vlanStripping] != "off" || dev.values[vlanFilter] != want || len(a.Problems) > 0 {
			t.Errorf("all VLANs %v: %v, %v", all, dev.values, a.Problems)
		}
	}
}

// TestCrashAnywhere: whatever the device held and refused, and wherever the
// process died, the journal on disk brings back what was.
func TestCrashAnywhere(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "journal")
		must(t, err)
		dev := &memory{values: map[knob]string{}, refuse: map[knob]bool{}}
		for _, k := range allKnobs {
			switch rapid.IntRange(0, 3).Draw(rt, k.Key) {
			case 0:
				dev.values[k] = "off"
			case 1:
				dev.values[k] = "on"
			case 2:
				dev.values[k], dev.refuse[k] = "on", true
			}
		}
		original := map[knob]string{}
		for k, v := range dev.values {
			original[k] = v
		}
		type died struct{}
		left := rapid.IntRange(0, 6).Draw(rt, "writes until death")
		j := freshJournal()
		dev.before = func(k knob, value string) {
			onDisk, err := load(j.path(dir))
			if err != nil || onDisk.Changes[len(onDisk.Changes)-1] != (change{k, "on", value}) {
				rt.Fatalf("%v is written before the journal knows: %+v, %v", k, onDisk, err)
			}
			if left--; left < 0 {
				panic(died{})
			}
		}
		func() {
			defer func() {
				if r := recover(); r != nil && r != (died{}) {
					panic(r)
				}
			}()
			a := &Applied{opt: Options{Dir: dir}, log: zap.NewNop(), j: j}
			if err := a.apply(dev, Settings{KeepVLANTags: true, AllVLANs: true, NoLRO: true}.wishes()); err != nil {
				rt.Fatal(err)
			}
		}()
		dev.before, dev.refuse = nil, nil
		if onDisk, err := load(j.path(dir)); err == nil {
			if err := onDisk.putBack(dev, dir, zap.NewNop()); err != nil {
				rt.Fatal(err)
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(original, dev.values); diff != "" {
			rt.Fatalf("not as it was:\n%s", diff)
		}
		if _, err := os.Stat(j.path(dir)); !errors.Is(err, os.ErrNotExist) {
			rt.Fatalf("the journal remains: %v", err)
		}
	})
}

func TestPutBack(t *testing.T) {
	all := []change{{vlanStripping, "on", "off"}, {lro, "on", "off"}, {groFlush, "0", "200000"}}
	tests := []struct {
		name    string
		values  map[knob]string
		refuse  map[knob]bool
		want    map[knob]string
		remains []change
	}{
		{"all ours", map[knob]string{vlanStripping: "off", lro: "off", groFlush: "200000"}, nil, map[knob]string{vlanStripping: "on", lro: "on", groFlush: "0"}, nil},
		{"changed by somebody else", map[knob]string{vlanStripping: "on", lro: "off", groFlush: "5"}, nil, map[knob]string{vlanStripping: "on", lro: "on", groFlush: "5"}, nil},
		{"knob gone", map[knob]string{lro: "off"}, nil, map[knob]string{lro: "on"}, nil},
		{
			"refused", map[knob]string{vlanStripping: "off", lro: "off", groFlush: "200000"}, map[knob]bool{lro: true},
			map[knob]string{vlanStripping: "on", lro: "off", groFlush: "0"}, all[1:2],
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, j := t.TempDir(), freshJournal()
			j.Changes = all
			must(t, j.save(dir))
			dev := &memory{values: tt.values, refuse: tt.refuse}
			if err := j.putBack(dev, dir, zap.NewNop()); (err != nil) != (tt.remains != nil) || err != nil && !errors.Is(err, errRefused) {
				t.Errorf("putBack: %v", err)
			}
			if diff := cmp.Diff(tt.want, dev.values); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			onDisk, err := load(j.path(dir))
			if tt.remains == nil {
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the journal remains: %+v, %v", onDisk, err)
				}
				return
			}
			must(t, err)
			if diff := cmp.Diff(tt.remains, onDisk.Changes, cmp.AllowUnexported(change{})); diff != "" {
				t.Errorf("journal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJournalRoundTrip(t *testing.T) {
	dir, j := t.TempDir(), freshJournal()
	j.PermMAC, j.Changes = "02:00:00:00:00:01", []change{{lro, "on", "off"}}
	must(t, j.save(dir))
	must(t, j.save(dir))
	got, err := load(j.path(dir))
	must(t, err)
	if diff := cmp.Diff(j, got, cmp.AllowUnexported(change{}), cmpopts.IgnoreUnexported(journal{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "eth9@42.json" {
		t.Errorf("files: %v", entries)
	}
	if err := j.save(filepath.Join(dir, "missing")); err == nil {
		t.Error("saves to nowhere")
	}
}

func TestLoadRefuses(t *testing.T) {
	good := `{"version":1,"name":"eth9","ifindex":7,"netns":42,"changes":[{"kind":"sysfs","key":"gro_flush_timeout","old":"0","new":"1"}]}`
	tests := []struct{ name, file, text, err string }{
		{"good", "eth9@42.json", good, ""},
		{"empty", "eth9@42.json", "", "unexpected end"},
		{"another file's", "eth8@42.json", good, "not of an interface of that name"},
		{"future version", "eth9@42.json", strings.Replace(good, `"version":1`, `"version":2`, 1), "of version 2, not 1"},
		{"path as a name", "passwd@42.json", strings.Replace(good, `"eth9"`, `"../../passwd"`, 1), "not of an interface of that name"},
		{"path as a key", "eth9@42.json", strings.Replace(good, "gro_flush_timeout", "../../kernel", 1), "unknown setting"},
		{"unknown feature", "eth9@42.json", strings.Replace(good, `"sysfs"`, `"feature"`, 1), "unknown setting"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tt.file)
			must(t, os.WriteFile(path, []byte(tt.text), 0o600))
			_, err := load(path)
			if tt.err == "" && err != nil || tt.err != "" && (!errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), path)) {
				t.Errorf("load: %v, want %q", err, tt.err)
			}
		})
	}
}

// TestUnreadable: of a journal with what another version has written all that is known is
// put back, and the file is set aside. What is refused stays in one of its own.
func TestUnreadable(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		dir, j := t.TempDir(), freshJournal()
		j.Version, j.Owner, j.Changes = 2, "another", []change{{lro, "on", "off"}, {knob{kindFeature, "rx-hashing"}, "on", "off"}, {groFlush, "0", "7"}}
		b, err := json.Marshal(j)
		must(t, err)
		path := j.path(dir)
		must(t, os.WriteFile(path, b, 0o600))
		old, err := leftover(path)
		if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), `of version 2, not 1, unknown setting feature "rx-hashing"`) {
			t.Fatalf("load: %v", err)
		}
		dev := &memory{values: map[knob]string{lro: "off", groFlush: "7"}, refuse: map[knob]bool{lro: refuse}}
		if err := old.putBack(dev, dir, zap.NewNop()); (err != nil) != refuse {
			t.Errorf("putBack: %v", err)
		}
		if dev.values[groFlush] != "0" || (dev.values[lro] == "on") == refuse {
			t.Errorf("values: %v", dev.values)
		}
		if kept, err := os.ReadFile(path + aside); err != nil || string(kept) != string(b) {
			t.Errorf("set aside: %q, %v", kept, err)
		}
		left, err := load(path)
		if !refuse {
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the journal remains: %+v, %v", left, err)
			}
			continue
		}
		must(t, err)
		if diff := cmp.Diff(j.Changes[:1], left.Changes, cmp.AllowUnexported(change{})); diff != "" {
			t.Errorf("journal (-want +got):\n%s", diff)
		}
	}
}

func TestFakeSysfs(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "class/net/eth9")
	must(t, os.MkdirAll(dir, 0o755))
	for file, text := range map[string]string{"ifindex": "7\n", "napi_defer_hard_irqs": "0\n"} {
		must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
	}
	open := func(index int) *hardware {
		h, err := openHardware("eth9", index, root)
		must(t, err)
		t.Cleanup(h.close)
		return h
	}
	h := open(7)
	if v, err := h.read(deferHardIRQs); v != "0" || err != nil {
		t.Errorf("read: %q, %v", v, err)
	}
	must(t, h.write(deferHardIRQs, "2"))
	if v, err := h.read(deferHardIRQs); v != "2" || err != nil {
		t.Errorf("read back: %q, %v", v, err)
	}
	if _, err := h.read(groFlush); !errors.Is(err, errNoKnob) {
		t.Errorf("a file that is not there: %v", err)
	}
	foreign := open(8)
	if err := foreign.write(deferHardIRQs, "9"); err == nil || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("another namespace's device: %v", err)
	}
	if v, _ := h.read(deferHardIRQs); v != "2" {
		t.Errorf("another namespace's device was written: %q", v)
	}
}

// TestOwned: a journal is its owner's from the first save to the end, over saves, and
// what is saved for another is nobody's.
func TestOwned(t *testing.T) {
	dir := t.TempDir()
	j := freshJournal()
	is := func(want bool) {
		t.Helper()
		if got, err := owned(j.path(dir)); got != want || err != nil {
			t.Errorf("owned: %v, %v", got, err)
		}
	}
	for range 2 {
		must(t, j.save(dir))
		is(true)
	}
	other, err := load(j.path(dir))
	must(t, err)
	other.Owner = "another"
	must(t, other.save(dir))
	is(false)
	must(t, j.save(dir))
	is(true)
	must(t, j.release())
	is(false)
	must(t, j.save(dir))
	must(t, j.remove(dir))
	if j.held != nil {
		t.Error("a journal that is removed is held")
	}
	if _, err := owned(j.path(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no journal: %v", err)
	}
}

func TestCheckMTU(t *testing.T) {
	if err := CheckMTU("eth1", 3822, 3840); err != nil {
		t.Error(err)
	}
	err := CheckMTU("eth1", 9000, 3840)
	want := "interface eth1: MTU above the frame size: MTU 9000 needs frames of 9018 bytes, a UMEM frame holds 3840; lower it with: ip link set dev eth1 mtu 3822"
	if !errors.Is(err, ErrMTU) || fmt.Sprint(err) != want {
		t.Errorf("%v", err)
	}
}

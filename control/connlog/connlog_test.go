package connlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

var start = time.Unix(1e9, 0)

// content is what a file has, "" if there is none.
func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// TestLine: what is written of a flow, down to the byte.
func TestLine(t *testing.T) {
	end := func(a packet.Addr, port uint16) conntrack.Endpoint {
		return conntrack.Endpoint{Addr: a, Port: port, Proto: packet.ProtoTCP}
	}
	v4 := func(d byte) packet.Addr { return packet.Addr4([]byte{192, 0, 2, d}) }
	v6 := packet.Addr{Hi: 0x20010db8 << 32, Lo: 7}
	l := New(Source{
		Modes:     map[conntrack.Mode]string{conntrack.FullNAT: "full-nat", conntrack.DNAT: "dnat"},
		Protocols: map[uint8]string{packet.ProtoTCP: "tcp"},
	}, Options{}, zap.NewNop())
	f := dataplane.LoggedFlow{
		Flow: dataplane.Flow{
			Service: "we\"b", Mode: conntrack.FullNAT, State: conntrack.TimeWait,
			Client: end(v6, 40000), VIP: end(v4(10), 80), Local: end(v4(11), 1024), Backend: end(v4(12), 8080),
			Age: 12500 * time.Millisecond, Idle: 10 * time.Second, Packets: [2]uint32{5, 1<<32 - 1}, Bytes: [2]uint64{300, 1 << 60},
		}, End: dataplane.EndFIN,
	}
	l.add(3, &f, start)
	f.Mode, f.End, f.State = conntrack.DNAT, dataplane.EndTimeout, conntrack.Established
	l.add(0, &f, start.Add(time.Millisecond))
	want := `{"time":"2001-09-09T01:46:40Z","service":"we\"b","protocol":"tcp","mode":"full-nat","client":"[2001:db8::7]:40000","vip":"192.0.2.10:80","local":"192.0.2.11:1024","backend":"192.0.2.12:8080","worker":3,"end":"fin","state":"time_wait","duration":2.5,"idle":10,"packets_to":5,"packets_from":4294967295,"bytes_to":300,"bytes_from":1152921504606846976}
{"time":"2001-09-09T01:46:40.001Z","service":"we\"b","protocol":"tcp","mode":"dnat","client":"[2001:db8::7]:40000","vip":"192.0.2.10:80","backend":"192.0.2.12:8080","worker":0,"end":"timeout","state":"established","duration":2.5,"idle":10,"packets_to":5,"packets_from":4294967295,"bytes_to":300,"bytes_from":1152921504606846976}
`
	if diff := cmp.Diff(want, string(l.buffer)); diff != "" || l.lines != 2 {
		t.Error(l.lines, diff)
	}
	for _, line := range bytes.Split(bytes.TrimSpace(l.buffer), []byte("\n")) {
		if !json.Valid(line) {
			t.Errorf("no JSON: %s", line)
		}
	}
}

// TestSetAside: whatever is written, no file is larger than it may be unless one write is,
// there are no more than are kept, and the latest lines are there, whole and in order.
func TestSetAside(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "below", "flows")
		o := Options{Path: path, Size: rapid.Int64Range(0, 200).Draw(rt, "size"), Keep: rapid.IntRange(0, 3).Draw(rt, "keep")}
		var f file
		all, now := "", start
		for range rapid.IntRange(1, 30).Draw(rt, "writes") {
			line := strings.Repeat("x", rapid.IntRange(0, 80).Draw(rt, "length")) + "\n"
			now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(rt, "ms")) * time.Millisecond)
			if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
				check(t, f.close())
				f = file{}
			}
			if err := f.write(now, o, []byte(line)); err != nil {
				rt.Fatal(err)
			}
			all += line
		}
		check(t, f.close())
		got := content(t, path)
		for i := 1; ; i++ {
			older := content(t, fmt.Sprintf("%s.%d", path, i))
			if older == "" {
				break
			}
			if i > o.Keep || o.Size == 0 {
				rt.Fatalf("there is a file %d", i)
			}
			got = older + got
		}
		if !strings.HasSuffix(all, got) || got == "" || o.Size == 0 && got != all {
			rt.Fatalf("written %q\nthere is %q", all, got)
		}
		files, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			rt.Fatal(err)
		}
		for _, e := range files {
			if info, err := e.Info(); err != nil || o.Size > 0 && info.Size() > max(o.Size, 81) || info.Mode().Perm()&0o007 != 0 {
				rt.Fatalf("%s: %v %v", e.Name(), info, err)
			}
		}
	})
}

// TestMovedAway: what logrotate does is noticed within a second, renamed or cut.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows")
	o, now := Options{Path: path, Size: 10}, start
	var f file
	write := func(s string) {
		t.Helper()
		check(t, f.write(now, o, []byte(s)))
	}
	write("a\n")
	check(t, os.Rename(path, path+"-old"))
	write("b\n") // still there
	now = now.Add(patience)
	write("c\n")
	if old, is := content(t, path+"-old"), content(t, path); old != "a\nb\n" || is != "c\n" {
		t.Errorf("%q, %q", old, is)
	}
	write("12345\n")
	check(t, os.Truncate(path, 0))
	now = now.Add(patience)
	write("d\n") // else it would be the one too many
	check(t, os.Remove(path))
	now = now.Add(patience)
	write("e\n")
	o.Path += "2"
	write("f\n")
	if is, other := content(t, path), content(t, path+"2"); is != "e\n" || other != "f\n" {
		t.Errorf("%q, %q", is, other)
	}
	check(t, os.Remove(path+"2"))
	write("full by this\n") // nobody needs the file that is not there any more
	if is := content(t, path+"2"); is != "full by this\n" {
		t.Errorf("%q", is)
	}
}

// TestNoWayToWrite: each failure is one, and it is tried again a second later.
func TestNoWayToWrite(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	check(t, unix.Mkfifo(pipe, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "plain"), nil, 0o600))
	for _, path := range []string{dir, pipe, filepath.Join(dir, "plain", "flows"), "/dev/null"} {
		var f file
		if err := f.write(start, Options{Path: path}, []byte("a\n")); err == nil || !strings.Contains(err.Error(), "connection log: ") {
			t.Errorf("%s: %v", path, err)
		}
	}
	path := filepath.Join(dir, "plain", "flows")
	var f file
	for _, c := range []struct {
		after time.Duration
		ok    bool
	}{{0, false}, {patience / 2, false}, {patience - 1, false}, {patience, true}} {
		if c.after == patience/2 { // it would work, but is not tried yet
			check(t, os.Remove(filepath.Join(dir, "plain")))
		}
		if err := f.write(start.Add(c.after), Options{Path: path}, []byte("a\n")); (err == nil) != c.ok {
			t.Errorf("after %v: %v", c.after, err)
		}
	}
}

// TestFullDisk: of lines that the disk has no room for nothing stays, what is there stays
// whole, and when there is room again it goes on.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	core, logs := observer.New(zap.InfoLevel)
	path := filepath.Join(dir, "flows")
	l := New(Source{}, Options{Path: path}, zap.New(core))
	line := []byte(strings.Repeat("x", 3000) + "\n")
	flush := func(n int) {
		for range n {
			l.buffer, l.lines = append(l.buffer, line...), l.lines+1
			l.flush()
		}
	}
	flush(10)
	written, lost := l.Counts()
	if lost == 0 || written+lost != 10 || content(t, path) != strings.Repeat(string(line), int(written)) {
		t.Errorf("%d written, %d lost, %d bytes", written, lost, len(content(t, path)))
	}
	check(t, os.Truncate(path, 0))
	l.out.until = time.Time{} // a second later
	flush(1)
	if got := content(t, path); got != string(line) {
		t.Errorf("then %d bytes", len(got))
	}
	var said []string
	for _, e := range logs.All() {
		said = append(said, e.Message)
	}
	if diff := cmp.Diff([]string{"connections are not logged", "connections are logged again"}, said); diff != "" {
		t.Error(diff)
	}
	check(t, l.out.close())
}

// TestRunEnds: it ends when it is told to, with nothing to write.
func TestRunEnds(t *testing.T) {
	l := New(Source{Clock: dataplane.Monotonic(), Flows: []*dataplane.FlowLog{dataplane.NewFlowLog(1)}}, Options{Path: "/nowhere/at/all"}, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	time.Sleep(3 * busyPeriod)
	cancel()
	check(t, <-done)
}

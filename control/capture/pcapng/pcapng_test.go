package pcapng

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/pcapgo"
	"pgregory.net/rapid"
)

// written is what a Writer is given.
type written struct {
	Interfaces []Interface
	Packets    []Packet
	Statistics []Statistics
}

func drawWritten(t *rapid.T) (w written) {
	words := rapid.StringMatching(`[ -~]{0,40}`)
	for range rapid.IntRange(1, 4).Draw(t, "interfaces") {
		w.Interfaces = append(w.Interfaces, Interface{
			Name: "n" + words.Draw(t, "name"), Description: words.Draw(t, "description"),
			Filter: words.Draw(t, "filter"), SnapLen: rapid.IntRange(1, 9000).Draw(t, "snaplen"),
		})
	}
	which := rapid.IntRange(0, len(w.Interfaces)-1)
	for range rapid.IntRange(0, 8).Draw(t, "packets") {
		data := rapid.SliceOfN(rapid.Byte(), 1, 70).Draw(t, "data")
		w.Packets = append(w.Packets, Packet{
			Interface: which.Draw(t, "interface"), Nanos: rapid.Int64Range(0, 1<<62).Draw(t, "nanos"),
			Len: len(data) + rapid.IntRange(0, 100).Draw(t, "cut off"), Data: data, Flags: rapid.Uint32Range(0, 2).Draw(t, "flags"),
			ID: rapid.Uint64().Draw(t, "id"), Queue: rapid.IntRange(-1, 99).Draw(t, "queue"), Comment: words.Draw(t, "comment"),
		})
	}
	for range rapid.IntRange(0, 3).Draw(t, "statistics") {
		w.Statistics = append(w.Statistics, Statistics{
			Interface: which.Draw(t, "interface"), Nanos: rapid.Int64Range(0, 1<<62).Draw(t, "nanos"),
			Captured: rapid.Uint64().Draw(t, "captured"), Dropped: rapid.Uint64().Draw(t, "dropped"), Comment: words.Draw(t, "comment"),
		})
	}
	return w
}

func (w *written) write(out io.Writer) error {
	p, err := NewWriter(out, "l4fwd", "a comment", w.Interfaces)
	for i := range w.Packets {
		err = errors.Join(err, p.Packet(&w.Packets[i]))
	}
	for i := range w.Statistics {
		err = errors.Join(err, p.Statistics(&w.Statistics[i]))
	}
	return err
}

// What is written is read again, unchanged, and gopacket reads the same packets.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawWritten(t)
		var file, copied bytes.Buffer
		if err := want.write(&file); err != nil {
			t.Fatal(err)
		}
		var got written
		err := Read(bytes.NewReader(file.Bytes()), func(b *Block) error {
			copied.Write(b.Raw)
			switch {
			case b.Interface != nil:
				got.Interfaces = append(got.Interfaces, *b.Interface)
			case b.Packet != nil:
				p := *b.Packet
				p.Data = bytes.Clone(p.Data)
				got.Packets = append(got.Packets, p)
			case b.Statistics != nil:
				got.Statistics = append(got.Statistics, *b.Statistics)
			}
			return nil
		})
		if d := cmp.Diff(want, got); err != nil || d != "" || !bytes.Equal(copied.Bytes(), file.Bytes()) {
			t.Fatalf("%v\n%s", err, d)
		}
		theirs, err := pcapgo.NewNgReader(bytes.NewReader(file.Bytes()), pcapgo.DefaultNgReaderOptions)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range want.Packets {
			data, ci, err := theirs.ReadPacketData()
			if err != nil || !bytes.Equal(data, p.Data) || ci.Length != p.Len || ci.InterfaceIndex != p.Interface || ci.Timestamp.UnixNano() != p.Nanos {
				t.Fatalf("packet %d: %v %+v, want %+v", i, err, ci, p)
			}
		}
	})
}

// A file that ends within a block is an error, and one that ends between two is none.
func TestCutOff(t *testing.T) {
	w := written{Interfaces: []Interface{{Name: "a", SnapLen: 9}}, Packets: []Packet{{Len: 5, Data: []byte{1, 2, 3, 4, 5}, Comment: "c"}}}
	var file bytes.Buffer
	if err := w.write(&file); err != nil {
		t.Fatal(err)
	}
	ends := map[int]bool{0: true}
	at := 0
	if err := Read(bytes.NewReader(file.Bytes()), func(b *Block) error { at += len(b.Raw); ends[at] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for n := range file.Len() {
		err := Read(bytes.NewReader(file.Bytes()[:n]), func(*Block) error { return nil })
		if (err == nil) != ends[n] {
			t.Errorf("%d of %d bytes: %v", n, file.Len(), err)
		}
	}
}

var errEnough = errors.New("enough")

func TestReadStops(t *testing.T) {
	var file bytes.Buffer
	if err := (&written{Interfaces: []Interface{{Name: "a"}}}).write(&file); err != nil {
		t.Fatal(err)
	}
	if err := Read(&file, func(*Block) error { return errEnough }); !errors.Is(err, errEnough) {
		t.Errorf("%v", err)
	}
}

// Whatever comes from a socket, nothing panics.
func FuzzRead(f *testing.F) {
	w := written{
		Interfaces: []Interface{{Name: "a", Filter: "tcp", SnapLen: 9}},
		Packets:    []Packet{{Len: 5, Data: []byte{1, 2, 3, 4, 5}, Comment: "c", Queue: 3}},
		Statistics: []Statistics{{Captured: 7, Dropped: 8}},
	}
	var file bytes.Buffer
	if err := w.write(&file); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add(file.Bytes()[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := Read(bytes.NewReader(b), func(b *Block) error { n += len(b.Raw); return nil })
		if n > len(b) || err == nil && n != len(b) {
			t.Errorf("%d bytes of blocks in %d: %v", n, len(b), err)
		}
	})
}

package bench

import (
	"bufio"
	"cmp"
	"io"
	"slices"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// output writes what leaves l4fwd to a capture. Frames are collected while the
// worker runs and written when its clock stands still. A nil output does
// nothing.
type output struct {
	buf   *bufio.Writer
	w     *pcapgo.Writer
	start time.Time
	err   error

	data []byte // collected frames one after another
	sent []sent // where each is
}

// sent is a collected frame: its bytes in data, and the place in the capture of what it was.
type sent struct {
	place     int32
	from, end int
}

// newOutput attaches to every port's transmit side; nil if w is nil.
func newOutput(r *rig, w io.Writer, start time.Time) *output {
	if w == nil {
		return nil
	}
	b := bufio.NewWriterSize(w, 1<<20)
	o := &output{buf: b, w: pcapgo.NewWriterNanos(b), start: start}
	o.err = o.w.WriteFileHeader(65535, layers.LinkTypeEthernet)
	for _, p := range r.ports {
		p.OnSend = o.collect
	}
	return o
}

// collect takes a copy of a frame being sent.
func (o *output) collect(f []byte) { o.collectFor(0, f) }

// collectFor is collect of what has become of the packet at a place of the capture.
func (o *output) collectFor(place int32, f []byte) {
	from := len(o.data)
	o.data = append(o.data, f...)
	o.sent = append(o.sent, sent{place, from, len(o.data)})
}

// write saves what was collected as sent at time at of the replay. What has been collected
// for a place is in the order of the capture: a burst's packets from clients leave before
// those from servers.
func (o *output) write(at int64) {
	if o == nil {
		return
	}
	slices.SortStableFunc(o.sent, func(a, b sent) int { return cmp.Compare(a.place, b.place) })
	ci := gopacket.CaptureInfo{Timestamp: o.start.Add(time.Duration(at - base))}
	for _, f := range o.sent {
		if o.err == nil {
			ci.CaptureLength, ci.Length = f.end-f.from, f.end-f.from
			o.err = cause(o.w.WritePacket(ci, o.data[f.from:f.end]), o.buf.Flush)
		}
	}
	o.data, o.sent = o.data[:0], o.sent[:0]
}

// finish writes the rest and returns the first error of all.
func (o *output) finish() error {
	if o == nil {
		return nil
	}
	if o.err != nil {
		return o.err
	}
	return o.buf.Flush()
}

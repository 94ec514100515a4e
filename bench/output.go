package bench

import (
	"bufio"
	"io"
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
	ends []int  // where each ends
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
func (o *output) collect(f []byte) {
	o.data = append(o.data, f...)
	o.ends = append(o.ends, len(o.data))
}

// write saves what was collected as sent at time at of the replay.
func (o *output) write(at int64) {
	if o == nil {
		return
	}
	from := 0
	ci := gopacket.CaptureInfo{Timestamp: o.start.Add(time.Duration(at - base))}
	for _, end := range o.ends {
		if o.err == nil {
			ci.CaptureLength, ci.Length = end-from, end-from
			o.err = cause(o.w.WritePacket(ci, o.data[from:end]), o.buf.Flush)
		}
		from = end
	}
	o.data, o.ends = o.data[:0], o.ends[:0]
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

package pcapng

import (
	"encoding/binary"
	"io"
)

// Types of blocks.
const (
	typeSection    = 0x0a0d0d0a
	typeInterface  = 1
	typeStatistics = 5
	typePacket     = 6 // enhanced
)

// Codes of options.
const (
	optEnd     = 0
	optComment = 1

	sectionApplication = 4

	interfaceName        = 2
	interfaceDescription = 3
	interfaceResolution  = 9
	interfaceFilter      = 11

	packetFlags = 2
	packetID    = 5
	packetQueue = 6

	statisticsReceived = 4
	statisticsDropped  = 5
)

const (
	byteOrder    = 0x1a2b3c4d
	linkEthernet = 1
	nanoseconds  = 9 // ten to the power of minus nine
)

// Flags of a packet.
const (
	Inbound  = 1
	Outbound = 2
)

// Interface is one of those that packets are captured on.
type Interface struct {
	Name, Description string
	Filter            string // tcpdump's expression; empty: none
	SnapLen           int
}

// Packet is one captured frame.
type Packet struct {
	Interface int   // index
	Nanos     int64 // since 1970
	Len       int   // of the whole frame
	Data      []byte
	Flags     uint32
	ID        uint64 // the same for all frames of one packet
	Queue     int    // negative: unknown
	Comment   string
}

// Statistics are an interface's.
type Statistics struct {
	Interface         int
	Nanos             int64
	Captured, Dropped uint64
	Comment           string
}

// Writer writes a section. Every method makes one call of Write with whole blocks.
type Writer struct {
	w io.Writer
	b []byte
}

// NewWriter writes the head of a section: what it is by, and all its interfaces, whose
// indices are in this order.
func NewWriter(w io.Writer, application, comment string, interfaces []Interface) (*Writer, error) {
	out := &Writer{w: w}
	b := out.begin(typeSection)
	b = binary.NativeEndian.AppendUint32(b, byteOrder)
	b = binary.NativeEndian.AppendUint16(b, 1)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint64(b, ^uint64(0)) // length of the section: unknown
	b = text(b, sectionApplication, application)
	b = text(b, optComment, comment)
	out.end(b)
	for _, i := range interfaces {
		start := len(out.b)
		b := out.open(typeInterface)
		b = binary.NativeEndian.AppendUint16(b, linkEthernet)
		b = binary.NativeEndian.AppendUint16(b, 0)
		b = binary.NativeEndian.AppendUint32(b, uint32(i.SnapLen))
		b = text(b, interfaceName, i.Name)
		b = text(b, interfaceDescription, i.Description)
		b = option(b, interfaceResolution, []byte{nanoseconds})
		if i.Filter != "" {
			b = text(b, interfaceFilter, "\x00"+i.Filter) // 0: an expression, not a program
		}
		out.close(b, start)
	}
	return out, out.flush()
}

// Packet writes a frame.
func (w *Writer) Packet(p *Packet) error {
	b := w.begin(typePacket)
	b = binary.NativeEndian.AppendUint32(b, uint32(p.Interface))
	b = binary.NativeEndian.AppendUint32(b, uint32(uint64(p.Nanos)>>32))
	b = binary.NativeEndian.AppendUint32(b, uint32(p.Nanos))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(p.Data)))
	b = binary.NativeEndian.AppendUint32(b, uint32(p.Len))
	b = pad(append(b, p.Data...))
	b = text(b, optComment, p.Comment)
	b = option(b, packetFlags, binary.NativeEndian.AppendUint32(nil, p.Flags))
	b = option(b, packetID, binary.NativeEndian.AppendUint64(nil, p.ID))
	if p.Queue >= 0 {
		b = option(b, packetQueue, binary.NativeEndian.AppendUint32(nil, uint32(p.Queue)))
	}
	w.end(b)
	return w.flush()
}

// Statistics writes what has been counted of an interface so far; the last such block
// counts.
func (w *Writer) Statistics(s *Statistics) error {
	b := w.begin(typeStatistics)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Interface))
	b = binary.NativeEndian.AppendUint32(b, uint32(uint64(s.Nanos)>>32))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nanos))
	b = text(b, optComment, s.Comment)
	b = option(b, statisticsReceived, binary.NativeEndian.AppendUint64(nil, s.Captured))
	b = option(b, statisticsDropped, binary.NativeEndian.AppendUint64(nil, s.Dropped))
	w.end(b)
	return w.flush()
}

// begin starts a block where there is none yet.
func (w *Writer) begin(kind uint32) []byte {
	w.b = w.b[:0]
	return w.open(kind)
}

// open starts a block; its length is filled in by close.
func (w *Writer) open(kind uint32) []byte {
	b := binary.NativeEndian.AppendUint32(w.b, kind)
	return binary.NativeEndian.AppendUint32(b, 0)
}

func (w *Writer) end(b []byte) { w.close(b, 0) }

// close ends the block that begins at start.
func (w *Writer) close(b []byte, start int) {
	b = option(b, optEnd, nil)
	n := uint32(len(b) - start + 4)
	binary.NativeEndian.PutUint32(b[start+4:], n)
	w.b = binary.NativeEndian.AppendUint32(b, n)
}

func (w *Writer) flush() error {
	_, err := w.w.Write(w.b)
	return err
}

// maxText bounds the length of an option, which 16 bits must hold.
const maxText = 1 << 15

// text appends an option of text, if there is any.
func text(b []byte, code uint16, s string) []byte {
	if s == "" {
		return b
	}
	return option(b, code, []byte(s[:min(len(s), maxText)]))
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, code)
	b = binary.NativeEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// pad appends zeros up to a multiple of 4 bytes. All blocks begin at one, so that the
// length of b tells.
func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

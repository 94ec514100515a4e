package packet

import "encoding/binary"

// TCP option kinds (IANA), and the usual kind of TOA, which is IANA's
// experimental 254.
const (
	OptEnd           = 0
	OptNop           = 1
	OptMSS           = 2
	OptWindowScale   = 3
	OptSACKPermitted = 4
	OptSACK          = 5
	OptTimestamps    = 8
	OptMD5           = 19 // RFC 2385
	OptAO            = 29 // RFC 5925
	OptFastOpen      = 34 // TCP Fast Open's cookie (RFC 7413 section 4.1.1)
	OptTOA           = 254
)

// Lengths of whole options, kind and length byte included.
const (
	OptMSSLen           = 4
	OptWindowScaleLen   = 3
	OptSACKPermittedLen = 2
	OptTimestampsLen    = 10
	SACKBlockLen        = 8
)

// MaxWindowScale is the largest shift a receiver applies (RFC 7323 section
// 2.3).
const MaxWindowScale = 14

// OptIter goes over the options of a TCP header. NOPs are passed over, the end
// of the list ends it. Options may begin at odd offsets: mind DiffAt.
//
//	for it := packet.Options(frame, p); it.Next(); {
//		if it.Kind == packet.OptMSS { ... }
//	}
type OptIter struct {
	b    []byte // up to the end of the options
	at   int
	Off  int   // of the option's kind byte, from the frame's first byte
	Len  int   // whole option, at least 2
	Kind uint8 // of the option
	// Malformed is set when the walk ended at an option whose length byte is
	// missing, below 2 or beyond the header: what follows cannot be told.
	Malformed bool
}

// Options begins a walk over the options of p, which must be Parse's result
// for frame. Of anything but TCP it finds none.
func Options(frame []byte, p *Packet) OptIter {
	if p.Kind != KindTCP {
		return OptIter{}
	}
	return OptIter{b: frame[:p.Payload], at: int(p.L4) + TCPMinLen}
}

// Next goes to the next option and reports whether there is one.
func (it *OptIter) Next() bool {
	for {
		kind, n := OptionAt(it.b, it.at)
		switch {
		case n > OptNop:
			it.Kind, it.Off, it.Len = kind, it.at, n
			it.at += n
			return true
		case n != OptNop:
			it.Malformed = n < 0
			it.at = len(it.b)
			return false
		}
		it.at++
	}
}

// OptionAt is one step of a walk over the options of a TCP header that ends where b
// does: the kind of the option at b[at] and its length in bytes, which is 1 for a
// NOP. The length is 0 at the end of the list or of b, and negative where the
// length byte is missing, below 2 or beyond b. It is for SYNs, which have many
// options: a step costs a fraction of what OptIter's does.
func OptionAt(b []byte, at int) (kind uint8, n int) {
	if uint(at) >= uint(len(b)) {
		return OptEnd, 0
	}
	if b = b[at:]; b[0] <= OptNop {
		return b[0], int(b[0]) // the length is the kind: 0 or 1
	}
	if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
		return b[0], -1
	}
	return b[0], int(b[1])
}

// Data is the option's data, without kind and length: bytes of the frame, good
// until it is changed.
func (it *OptIter) Data() []byte { return it.b[it.Off+2 : it.Off+it.Len] }

// TCPOptions is what one walk learns of the options everybody uses. Offsets
// are those of the kind byte from the frame's first byte; 0 means absent.
// Options of a wrong length count as absent, and of several equal ones the
// last counts, as in the usual receivers.
type TCPOptions struct {
	TSVal, TSEcr  uint32 // Timestamps (RFC 7323)
	MSSOff        uint16
	MSS           uint16 // bytes
	WScaleOff     uint16
	TSOff         uint16
	SACKPermOff   uint16
	SACKOff       uint16
	SACKBlocks    uint8 // blocks of 8 bytes from SACKOff+2: left and right edge
	WScale        uint8 // shift, MaxWindowScale at most
	SACKPermitted bool
	Malformed     bool // see OptIter
}

// ScanOptions walks the options of p, which must be Parse's result for frame.
func ScanOptions(frame []byte, p *Packet) (o TCPOptions) {
	if p.Kind != KindTCP {
		return o
	}
	b := frame[:p.Payload]
	for at := int(p.L4) + TCPMinLen; ; {
		kind, n := OptionAt(b, at)
		if n <= 0 {
			o.Malformed = n < 0
			return o
		}
		if kind != OptNop {
			o.note(kind, b[at:at+n], uint16(at))
		}
		at += n
	}
}

// note learns from an option of a kind whose bytes are b, at off in the frame.
func (o *TCPOptions) note(kind uint8, b []byte, off uint16) {
	switch kind {
	case OptMSS:
		if len(b) == OptMSSLen {
			o.MSSOff, o.MSS = off, binary.BigEndian.Uint16(b[2:])
		}
	case OptWindowScale:
		if len(b) == OptWindowScaleLen {
			o.WScaleOff, o.WScale = off, min(b[2], MaxWindowScale)
		}
	case OptSACKPermitted:
		if len(b) == OptSACKPermittedLen {
			o.SACKPermOff, o.SACKPermitted = off, true
		}
	case OptSACK:
		if d := len(b) - 2; d > 0 && d%SACKBlockLen == 0 {
			o.SACKOff, o.SACKBlocks = off, uint8(d/SACKBlockLen)
		}
	case OptTimestamps:
		if len(b) == OptTimestampsLen {
			o.TSOff = off
			o.TSVal, o.TSEcr = binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
		}
	}
}

// NoScale in place of a window shift says that there is none.
const NoScale = 0xff

// SYNOptions is what one short walk learns of a SYN's options.
type SYNOptions struct {
	Scale uint8  // the window shift, as TCPOptions has it, or NoScale
	kinds uint64 // a bit each; the last is that of all the kinds from there on
}

// May reports whether there may be an option of that kind: if not, there is none. That
// holds for the malformed option, too, that the list ends with.
func (s SYNOptions) May(kind uint8) bool { return s.kinds>>min(kind, 63)&1 != 0 }

// ScanSYN walks the options of p, which must be Parse's result for frame. Its steps are
// OptionAt's, written out for the speed of it.
func ScanSYN(frame []byte, p *Packet) SYNOptions {
	s := SYNOptions{Scale: NoScale}
	if p.Kind != KindTCP {
		return s
	}
	b := frame[:p.Payload]
	for at := int(p.L4) + TCPMinLen; at < len(b); {
		kind := b[at]
		if kind == OptNop {
			at++
			continue
		}
		if kind == OptEnd {
			break
		}
		s.kinds |= 1 << min(kind, 63)
		rest := b[at:]
		if len(rest) < 2 || rest[1] < 2 || int(rest[1]) > len(rest) {
			break
		}
		if kind == OptWindowScale && rest[1] == OptWindowScaleLen {
			s.Scale = min(rest[2], MaxWindowScale)
		}
		at += int(rest[1])
	}
	return s
}

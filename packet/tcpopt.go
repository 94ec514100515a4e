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
	for it.at < len(it.b) {
		kind := it.b[it.at]
		if kind == OptNop {
			it.at++
			continue
		}
		if kind == OptEnd {
			break
		}
		rest := it.b[it.at:]
		if len(rest) < 2 || rest[1] < 2 || int(rest[1]) > len(rest) {
			it.Malformed = true
			break
		}
		it.Kind, it.Off, it.Len = kind, it.at, int(rest[1])
		it.at += it.Len
		return true
	}
	it.at = len(it.b)
	return false
}

// Data is the option's data, without kind and length: bytes of the frame, good
// until it is changed.
func (it *OptIter) Data() []byte { return it.b[it.Off+2 : it.Off+it.Len] }

// FindOption returns offset and whole length of the first option of a kind.
func FindOption(frame []byte, p *Packet, kind uint8) (off, n int, ok bool) {
	for it := Options(frame, p); it.Next(); {
		if it.Kind == kind {
			return it.Off, it.Len, true
		}
	}
	return 0, 0, false
}

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
	it := Options(frame, p)
	for it.Next() {
		d := it.b[it.Off+2 : it.Off+it.Len]
		off := uint16(it.Off)
		switch it.Kind {
		case OptMSS:
			if it.Len == OptMSSLen {
				o.MSSOff, o.MSS = off, binary.BigEndian.Uint16(d)
			}
		case OptWindowScale:
			if it.Len == OptWindowScaleLen {
				o.WScaleOff, o.WScale = off, min(d[0], MaxWindowScale)
			}
		case OptSACKPermitted:
			if it.Len == OptSACKPermittedLen {
				o.SACKPermOff, o.SACKPermitted = off, true
			}
		case OptSACK:
			if len(d) > 0 && len(d)%SACKBlockLen == 0 {
				o.SACKOff, o.SACKBlocks = off, uint8(len(d)/SACKBlockLen)
			}
		case OptTimestamps:
			if it.Len == OptTimestampsLen {
				o.TSOff = off
				o.TSVal, o.TSEcr = binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:])
			}
		}
	}
	o.Malformed = it.Malformed
	return o
}

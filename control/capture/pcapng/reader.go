package pcapng

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxBlock bounds a block, in bytes.
const maxBlock = 1 << 20

// ErrFormat is what wraps all that is wrong with a file.
var ErrFormat = errors.New("no pcapng of this machine")

// Block is one of a file. Of its fields those are set that its type has.
type Block struct {
	Raw        []byte // valid until the next
	Interface  *Interface
	Packet     *Packet
	Statistics *Statistics
}

// Read calls f with every block of r until the end, which is no error between two
// blocks, or until f returns an error.
func Read(r io.Reader, f func(*Block) error) error {
	var buf []byte
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading a capture: %w", err)
		}
		n := binary.NativeEndian.Uint32(head[4:])
		if n < 12 || n%4 != 0 || n > maxBlock {
			return fmt.Errorf("%w: a block of %d bytes", ErrFormat, n)
		}
		buf = append(buf[:0], head[:]...)
		buf = append(buf, make([]byte, n-8)...)
		if _, err := io.ReadFull(r, buf[8:]); err != nil {
			return fmt.Errorf("reading a capture: %w", err)
		}
		b := Block{Raw: buf}
		if err := b.decode(); err != nil {
			return err
		}
		if err := f(&b); err != nil {
			return err
		}
	}
}

// decode reads what the block says.
func (b *Block) decode() error {
	kind, body := binary.NativeEndian.Uint32(b.Raw), b.Raw[8:len(b.Raw)-4]
	short := func(n int) error {
		if len(body) < n {
			return fmt.Errorf("%w: a block of type %#x with %d bytes", ErrFormat, kind, len(body))
		}
		return nil
	}
	switch kind {
	case typeSection:
		if err := short(16); err != nil {
			return err
		}
		if binary.NativeEndian.Uint32(body) != byteOrder {
			return fmt.Errorf("%w: another byte order", ErrFormat)
		}
	case typeInterface:
		if err := short(8); err != nil {
			return err
		}
		b.Interface = &Interface{SnapLen: int(binary.NativeEndian.Uint32(body[4:]))}
		return options(body[8:], b.Interface.option)
	case typePacket:
		if err := short(20); err != nil {
			return err
		}
		n := binary.NativeEndian.Uint32(body[12:])
		if err := short(20 + int(min(n, maxBlock)+3)&^3); err != nil {
			return err
		}
		b.Packet = &Packet{
			Interface: int(binary.NativeEndian.Uint32(body)), Nanos: stamp(body[4:]),
			Len: int(binary.NativeEndian.Uint32(body[16:])), Data: body[20 : 20+n], Queue: -1,
		}
		return options(body[20+(n+3)&^3:], b.Packet.option)
	case typeStatistics:
		if err := short(12); err != nil {
			return err
		}
		b.Statistics = &Statistics{Interface: int(binary.NativeEndian.Uint32(body)), Nanos: stamp(body[4:])}
		return options(body[12:], b.Statistics.option)
	}
	return nil
}

func stamp(b []byte) int64 {
	return int64(uint64(binary.NativeEndian.Uint32(b))<<32 | uint64(binary.NativeEndian.Uint32(b[4:])))
}

// options calls f with each.
func options(b []byte, f func(code uint16, v []byte)) error {
	for len(b) >= 4 {
		code, n := binary.NativeEndian.Uint16(b), int(binary.NativeEndian.Uint16(b[2:]))
		if code == optEnd {
			return nil
		}
		if len(b) < 4+(n+3)&^3 {
			return fmt.Errorf("%w: an option of %d bytes", ErrFormat, n)
		}
		f(code, b[4:4+n])
		b = b[4+(n+3)&^3:]
	}
	return nil
}

func (i *Interface) option(code uint16, v []byte) {
	switch {
	case code == interfaceName:
		i.Name = string(v)
	case code == interfaceDescription:
		i.Description = string(v)
	case code == interfaceFilter && len(v) > 0:
		i.Filter = string(v[1:])
	}
}

func (p *Packet) option(code uint16, v []byte) {
	switch {
	case code == optComment:
		p.Comment = string(v)
	case code == packetFlags && len(v) == 4:
		p.Flags = binary.NativeEndian.Uint32(v)
	case code == packetID && len(v) == 8:
		p.ID = binary.NativeEndian.Uint64(v)
	case code == packetQueue && len(v) == 4:
		p.Queue = int(binary.NativeEndian.Uint32(v))
	}
}

func (s *Statistics) option(code uint16, v []byte) {
	switch {
	case code == optComment:
		s.Comment = string(v)
	case code == statisticsReceived && len(v) == 8:
		s.Captured = binary.NativeEndian.Uint64(v)
	case code == statisticsDropped && len(v) == 8:
		s.Dropped = binary.NativeEndian.Uint64(v)
	}
}

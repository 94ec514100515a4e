package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// blockReader passes a pcapng file through, block by block, and refuses what
// the reader behind it would take on trust: an end of the file within a block,
// which it takes for the end of the capture, and lengths beyond all reason, for
// which it would find memory first.
//
// A block is its type, its whole length and, in a section header, the byte
// order of all that follows, four bytes each
// (draft-ietf-opsawg-pcapng sections 3.1 and 4.1).
type blockReader struct {
	r    *bufio.Reader
	big  bool
	left uint32 // of the block under way
}

// Types of blocks with a packet in them, and where the length of it stands.
const (
	blockPacket   = 2 // obsolete
	blockSimple   = 3
	blockEnhanced = 6

	lengthInSimple   = 8
	lengthInEnhanced = 20 // and in the obsolete one
)

// magicOrder begins the body of a section header, in the section's byte order.
const magicOrder = 0x1a2b3c4d

// maxBlock bounds a block: the longest packet and generous options.
const maxBlock = 16 << 20

// Read returns io.EOF between two blocks only.
func (b *blockReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n, err := b.r.Read(p[:min(len(p), int(b.left))])
	b.left -= uint32(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next looks at the head of the next block, which stays in the buffer.
func (b *blockReader) next() error {
	head, err := b.r.Peek(12)
	if len(head) == 0 {
		return err
	}
	if err != nil {
		return cutShort(io.ErrUnexpectedEOF, err)
	}
	if binary.LittleEndian.Uint32(head) == magicSection { // the same in both orders
		b.big = binary.BigEndian.Uint32(head[8:]) == magicOrder
	}
	length := b.uint32(head[4:])
	if length < 12 || length > maxBlock {
		return fmt.Errorf("block of %d bytes", length)
	}
	at := uint32(0)
	switch b.uint32(head) {
	case blockSimple:
		at = lengthInSimple
	case blockPacket, blockEnhanced:
		at = lengthInEnhanced
	}
	if at != 0 {
		head, err = b.r.Peek(int(min(at+4, length)))
		if err != nil {
			return cutShort(io.ErrUnexpectedEOF, err)
		}
		if len(head) < int(at)+4 || b.uint32(head[at:]) > maxPacket {
			return fmt.Errorf("packet longer than its block of %d bytes", length)
		}
	}
	b.left = length
	return nil
}

// cutShort is end for the end of a file, else err.
func cutShort(end, err error) error {
	if errors.Is(err, io.EOF) {
		return end
	}
	return err
}

func (b *blockReader) uint32(p []byte) uint32 {
	if b.big {
		return binary.BigEndian.Uint32(p)
	}
	return binary.LittleEndian.Uint32(p)
}

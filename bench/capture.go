package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// Capture is a list of Ethernet frames in memory.
type Capture struct {
	Name   string
	Frames [][]byte // parts of a few large blocks, in order
	// Times are nanoseconds since the first frame. They never go back: a frame
	// that the file has before an earlier one counts as captured with it.
	// No two are more than a day apart.
	Times []int64
	Start time.Time // of the first frame

	newest time.Time
}

// ErrCapture is a file that is no capture that can be used, or ends within a
// packet.
var ErrCapture = errors.New("unusable capture")

// maxPacket bounds a packet of a capture, so that a corrupt length does not
// take all memory: tcpdump's own bound.
const maxPacket = 262144

// packetSource is what the readers of both formats have in common. (What they
// call zero copy allocates as much as a pcapng file's snap length says.)
type packetSource interface {
	gopacket.PacketDataSource
	LinkType() layers.LinkType
}

// LoadCapture reads the pcap or pcapng file at path.
func LoadCapture(path string) (*Capture, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	c, err := ReadCapture(path, f)
	return c, errors.Join(err, f.Close())
}

// ReadCapture reads a capture, pcap or pcapng, of Ethernet frames. name is the
// file's, for messages; an error names the packet it occurred at, counted from
// 1. Interfaces of a pcapng file that are not Ethernet are passed over if the
// first one is.
func ReadCapture(name string, r io.Reader) (c *Capture, err error) {
	// pcapgo divides by the time resolution of a pcapng interface, which may
	// come out as zero, and trusts more of a file than it should.
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, fmt.Errorf("%s: %w: %v", name, ErrCapture, p)
		}
	}()
	return readCapture(name, r)
}

func readCapture(name string, r io.Reader) (*Capture, error) {
	src, err := openCapture(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrCapture, err)
	}
	if t := src.LinkType(); t != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("%s: %w: link type %v, want Ethernet", name, ErrCapture, t)
	}
	c := &Capture{Name: name}
	var block []byte
	for {
		data, ci, err := src.ReadPacketData()
		// At the end of the file between two packets there is nothing in ci.
		if errors.Is(err, io.EOF) && ci.CaptureLength == 0 {
			break
		}
		if err == nil && len(data) > maxPacket {
			err = fmt.Errorf("%d bytes long", len(data))
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("the file ends within it")
			}
			return nil, fmt.Errorf("%s: %w: packet %d: %w", name, ErrCapture, len(c.Frames)+1, err)
		}
		if cap(block)-len(block) < len(data) {
			block = make([]byte, 0, 1<<20)
		}
		at := len(block)
		block = append(block, data...)
		c.add(block[at:len(block):len(block)], ci.Timestamp)
	}
	if len(c.Frames) == 0 {
		return nil, fmt.Errorf("%s: %w: no packet in it", name, ErrCapture)
	}
	return c, nil
}

func (c *Capture) add(frame []byte, at time.Time) {
	if at.IsZero() { // a simple packet block (pcapng) has no time
		at = time.Unix(0, 0)
	}
	if len(c.Frames) == 0 {
		c.Start = at.UTC()
	}
	t := int64(0)
	if n := len(c.Times); n > 0 {
		gap := min(max(at.Sub(c.newest), 0), maxGap)
		t = c.Times[n-1] + gap.Nanoseconds()
	}
	if at.After(c.newest) {
		c.newest = at
	}
	c.Frames, c.Times = append(c.Frames, frame), append(c.Times, t)
}

// maxGap bounds the time between two packets: longer than any flow stays that
// nobody uses, by default, and short enough for the sum to mean something where
// a file's times do not.
const maxGap = 24 * time.Hour

// span is how much time a pass over the capture takes: up to the last frame
// and half a gap as they are on average.
func (c *Capture) span() int64 {
	last := c.Times[len(c.Times)-1]
	return last + last/int64(len(c.Times)) + 1
}

// magicSection begins a pcapng file (draft-ietf-opsawg-pcapng section 4.1).
const magicSection = 0x0a0d0d0a

func openCapture(r io.Reader) (packetSource, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	magic, err := b.Peek(4)
	if err != nil {
		return nil, errors.New("too short for pcap or pcapng")
	}
	if binary.LittleEndian.Uint32(magic) == magicSection {
		ng, err := pcapgo.NewNgReader(&blockReader{r: b}, pcapgo.NgReaderOptions{})
		if err != nil {
			return nil, fmt.Errorf("pcapng: %w", err)
		}
		return ng, nil
	}
	p, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("pcap: %w", err)
	}
	p.SetSnaplen(maxPacket)
	return p, nil
}

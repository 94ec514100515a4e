package nic

import (
	"errors"
	"fmt"
	"net"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Info is what a NIC is.
type Info struct {
	Name     string
	Index    int // interface index
	Driver   string
	Bus      string // bus address, "" for software devices
	MAC      net.HardwareAddr
	PermMAC  net.HardwareAddr // nil for software devices
	MTU      int              // bytes of IP packet
	RXQueues int              // in use now, the queues AF_XDP can bind
	TXQueues int
	MaxRX    int // that could be in use, see ethtool -L
	MaxTX    int
	Combined bool // queues come in pairs: ethtool -L NAME combined N
	RSS      *RSS // nil if it cannot be read
	// XDPProgram is the id of the XDP program attached, 0 if there is none.
	XDPProgram uint32
}

// RSS is how a NIC spreads packets over its queues.
type RSS struct {
	Function    HashFunction
	Symmetric   bool // the input is transformed so that both directions hash alike
	Key         []byte
	Indirection []uint32 // queue by hash modulo length

	TCP4, UDP4, TCP6, UDP6 HashFields // 0 where the driver does not tell
}

// HashFunction is a bit of ethtool's hash function mask.
type HashFunction uint8

// Hash functions (include/linux/ethtool.h, ETH_RSS_HASH_*).
const (
	Toeplitz HashFunction = 1 << iota
	XOR
	CRC32
)

// HashFields says which fields of a packet are hashed.
type HashFields uint64

// Fields (include/uapi/linux/ethtool.h, RXH_*).
const (
	HashSrcIP   HashFields = 1 << 4
	HashDstIP   HashFields = 1 << 5
	HashSrcPort HashFields = 1 << 6
	HashDstPort HashFields = 1 << 7

	HashFourTuple = HashSrcIP | HashDstIP | HashSrcPort | HashDstPort
)

// ReadInfo reads all about the interface in the namespace, zero or
// netns.None() being that of the calling thread. What a driver does not tell
// stays empty; only an interface that is not there is an error.
func ReadInfo(ns netns.NsHandle, name string) (*Info, error) {
	var out *Info
	err := within(ns, func() (err error) {
		out, err = readInfo(name)
		return err
	})
	return out, err
}

func readInfo(name string) (*Info, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := l.Attrs()
	out := &Info{
		Name: name, Index: a.Index, MAC: a.HardwareAddr, PermMAC: a.PermHWAddr, MTU: a.MTU,
		RXQueues: a.NumRxQueues, TXQueues: a.NumTxQueues, MaxRX: a.NumRxQueues, MaxTX: a.NumTxQueues,
	}
	if a.Xdp != nil && a.Xdp.Attached {
		out.XDPProgram = a.Xdp.ProgId
	}
	et, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("interface %s: opening a socket for ethtool: %w", name, err)
	}
	defer et.Close()
	if d, err := et.DriverInfo(name); err == nil {
		out.Driver, out.Bus = d.Driver, d.BusInfo
	}
	if c, err := et.GetChannels(name); err == nil {
		out.channels(c)
	}
	out.RSS, _ = readRSS(name) // nil for software devices
	return out, nil
}

// channels overrides the queue counts that netlink gave: those are of the
// queues that exist, these of the ones in use.
func (i *Info) channels(c ethtool.Channels) {
	if rx := c.RxCount + c.CombinedCount; rx > 0 {
		i.RXQueues = int(rx)
		i.MaxRX = int(max(c.MaxRx+c.MaxCombined, rx))
	}
	if tx := c.TxCount + c.CombinedCount; tx > 0 {
		i.TXQueues = int(tx)
		i.MaxTX = int(max(c.MaxTx+c.MaxCombined, tx))
	}
	if c.MaxCombined > 0 {
		i.Combined = true
		i.MaxRX, i.MaxTX = int(c.MaxCombined), int(c.MaxCombined)
	}
}

// ErrMTU is wrapped by what CheckMTU returns.
var ErrMTU = errors.New("MTU above the frame size")

// CheckMTU returns an error that says what to do if packets of that MTU, with
// an Ethernet header and one VLAN tag, do not fit a frame's capacity in bytes
// (chunk size less headroom).
func CheckMTU(name string, mtu, capacity int) error {
	const header = 18
	if mtu+header <= capacity {
		return nil
	}
	return fmt.Errorf("interface %s: %w: MTU %d needs frames of %d bytes, a UMEM frame holds %d; "+
		"lower it with: ip link set dev %s mtu %d", name, ErrMTU, mtu, mtu+header, capacity, name, capacity-header)
}

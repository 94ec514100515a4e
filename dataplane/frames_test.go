package dataplane

import (
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/memport"
)

// fullPort takes nothing into its TX ring.
type fullPort struct{ *memport.Port }

func (fullPort) Transmit([]unix.XDPDesc) int { return 0 }

// TestFullTXRingIsOneVerdict: a packet that found no room is dropped, and was
// not forwarded besides (newRig's clean-up adds the verdicts up).
func TestFullTXRingIsOneVerdict(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	w.queues[1].Port = fullPort{r.port[0][1]}
	var list [][]byte
	for i := range 60 {
		list = append(list, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1000+i), dst: "192.0.2.11:5000", udp: true}))
	}
	r.deliver(0, 0, list...)
	c := r.counts()
	if c.Verdicts[DropTxFull] != 60 || c.Verdicts[Forwarded] != 0 || c.Sent != 0 {
		t.Errorf("%d dropped, %d forwarded, %d sent", c.Verdicts[DropTxFull], c.Verdicts[Forwarded], c.Sent)
	}
}

// TestShortAnswersArePadded: on veth a request may come without Ethernet's
// padding; the answer may leave by a wire that wants it.
func TestShortAnswersArePadded(t *testing.T) {
	r := newRig(t, 1, testSpec())
	arp := serialize(t,
		&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: clientMAC[:], SourceProtAddress: []byte{198, 51, 100, 7}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{192, 0, 2, 10}})
	arp = arp[:42]
	for i := range r.dp.umem {
		r.dp.umem[i] = 0xee // somebody's packet was here
	}
	out := r.deliver(0, 0, arp)
	if len(out) != 1 || len(out[0].bytes) != minFrame {
		t.Fatalf("%+v", out)
	}
	for _, b := range out[0].bytes[42:] {
		if b != 0 {
			t.Fatalf("padding % x", out[0].bytes[42:])
		}
	}
}

// TestManyQueues: one worker may well have more than 127 queues.
func TestManyQueues(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	second := w.Detach(1)[0]
	for range 300 {
		if err := w.Attach(0, nicMAC[0], memport.New(r.dp.umem, testFrame, testRing)); err != nil {
			t.Fatal(err)
		}
	}
	w.Adopt(second.Held(nil))
	last := memport.New(r.dp.umem, testFrame, testRing)
	last.OnSend = r.port[0][1].OnSend
	if err := w.Attach(1, nicMAC[1], last); err != nil {
		t.Fatal(err)
	}
	r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}))
}

package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/nat"
)

// TestProxyHeader speaks to a server that insists on PROXY: the header comes
// with the bare ACK already, again with the data while the server has not
// acknowledged it, and shifts the stream from then on.
func TestProxyHeader(t *testing.T) {
	v2 := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24"), addr("2001:db8:c::7").Netip().AsSlice()...)
	v2 = append(v2, addr("2001:db8::13").Netip().AsSlice()...)
	v2 = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(v2, 40000), 80)
	tests := []struct {
		name, client, vip string
		want              []byte
		mss               uint16 // seen by the client; the server says 1460
	}{
		{"v1", "198.51.100.7:40000", "192.0.2.13:80", []byte("PROXY TCP4 198.51.100.7 192.0.2.13 40000 80\r\n"), 1460 - 45},
		{"v2 and NAT64", "[2001:db8:c::7]:40000", "[2001:db8::13]:80", v2, 1460 - 52},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 2, testSpec())
			n := uint32(len(tt.want))
			c := &conv{r: r, client: tt.client, vip: tt.vip}
			syn := c.fromClient(seg{syn: true, seq: 1000, opts: []layers.TCPOption{mss(1440)}})
			src, dst := ipOf(syn)
			c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), 8013), tcpOf(syn).Seq
			synAck := c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1, opts: []layers.TCPOption{mss(1460)}})
			if got := binary.BigEndian.Uint16(tcpOf(synAck).Options[0].OptionData); got != tt.mss {
				t.Errorf("MSS %d, want %d", got, tt.mss)
			}
			ack := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001}))
			if !bytes.Equal(ack.Payload, tt.want) || ack.Seq != c.isn+1 {
				t.Errorf("with the ACK, at %d: %q\nwant %q", ack.Seq-c.isn, ack.Payload, tt.want)
			}
			data := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 33}))
			if !bytes.HasPrefix(data.Payload, tt.want) || len(data.Payload) != int(n)+33 || data.Seq != c.isn+1 {
				t.Errorf("with data: %q", data.Payload)
			}
			more := tcpOf(c.fromClient(seg{ack: true, seq: 1034, ackNum: 9001, payload: 7}))
			if more.Seq != c.isn+34+n || len(more.Payload) != 7 {
				t.Errorf("behind it at %d: %q", more.Seq-c.isn, more.Payload)
			}
			inside := tcpOf(c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1 + n/2}))
			if inside.Ack != 1001 {
				t.Errorf("an acknowledgement inside the header shows as %d", inside.Ack)
			}
			whole := tcpOf(c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1 + n + 40, payload: 5}))
			if whole.Ack != 1041 {
				t.Errorf("acknowledged to the client: %d, want 1041", whole.Ack)
			}
			late := tcpOf(c.fromClient(seg{ack: true, seq: 1041, ackNum: 9006, payload: 9}))
			if late.Seq != c.isn+41+n || len(late.Payload) != 9 {
				t.Errorf("afterwards at %d: %q", late.Seq-c.isn, late.Payload)
			}
			if got := r.counts(); got.Drops() != 0 {
				t.Errorf("%+v", got.Verdicts)
			}
		})
	}
}

func TestProxyDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	n := 0
	list := make([][]byte, 1)
	frames := make([][]byte, 1000)
	for i := range frames {
		frames[i] = build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 2000+i), dst: "192.0.2.13:80", syn: true, seq: 1})
	}
	if allocs := testing.AllocsPerRun(500, func() {
		n++
		list[0] = frames[n]
		r.port[0][0].Feed(list, 1)
		r.step()
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestProxyExpiryBeforeAcknowledgement: both ends fall silent after the server got
// the header and its acknowledgement was lost. Its RST has the number behind the
// header, and behind the data if there was any.
func TestProxyExpiryBeforeAcknowledgement(t *testing.T) {
	for _, data := range []uint32{0, 33} {
		t.Run(fmt.Sprint(data, " bytes of data"), func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := &conv{r: r, client: "198.51.100.7:40000", vip: "192.0.2.13:80"}
			syn := c.fromClient(seg{syn: true, seq: 1000})
			src, dst := ipOf(syn)
			c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), 8013), tcpOf(syn).Seq
			c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1})
			last := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: int(data)}))
			got := r.idleOut()
			if s, want := got[1], last.Seq+uint32(len(last.Payload)); !s.RST || s.Seq != want || s.Ack != 9001 {
				t.Errorf("server gets %+v, it expects %d", s, want)
			}
			if s := got[0]; !s.RST || s.Seq != 9001 || s.Ack != 1001+data {
				t.Errorf("client gets %+v", s)
			}
		})
	}
}

// TestReuseGoesBeyondTheHeader: a connection that is reset before its server has
// acknowledged the PROXY header has nonetheless sent it. Whenever the client comes
// again, its server gets a SYN beyond it.
func TestReuseGoesBeyondTheHeader(t *testing.T) {
	spec := testSpec()
	spec.Locals, spec.Services = spec.Locals[:1], spec.Services[7:9]
	const payload, longest = 500, 104
	for _, k := range [][2]string{{"198.51.100.7:40000", "192.0.2.13:80"}, {"[2001:db8:c::7]:40000", "[2001:db8::13]:80"}} {
		t.Run(k[1], func(t *testing.T) {
			r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2000}} })
			last, local := uint32(0), ""
			again := func(after string) {
				t.Helper()
				c, _ := r.begin(k[0], k[1], 1000)
				if local == "" {
					local, last = c.local, c.isn-1
				}
				if c.local != local || int32(c.isn-last) <= 0 {
					t.Fatalf("%s from %s, before from %s; begins %d before what the server has seen", after, c.local, local, last-c.isn)
				}
				c.answer()
				sent := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: payload}))
				if last = sent.Seq + uint32(len(sent.Payload)); len(sent.Payload) <= payload {
					t.Fatal("no header")
				}
				c.fromClient(seg{rst: true, ack: true, seq: 1001 + payload, ackNum: 9001})
			}
			for ticks := int64(0); ticks < payload+2*longest; ticks += 13 {
				again("a connection like the first")
				r.now += 64 * ticks
				again(fmt.Sprintf("%d ticks later", ticks))
				r.now += 10e6 // the clock catches up
			}
		})
	}
}

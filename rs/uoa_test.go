package rs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// uoaFrame is a datagram with UOA, good in all that is not said to be otherwise.
type uoaFrame struct {
	by       string         // protocol, option, none
	client   netip.AddrPort // whom it names
	from, to netip.AddrPort // of the datagram
	apart    bool           // with the end of the option list behind it
	vlan     bool
	options  int // words of NOPs behind the IPv4 header
	more     bool
	payload  string
}

// build makes the frame with gopacket.
func (f uoaFrame) build(t rapid.TB) []byte { return f.buildTo(t, serverMAC) }

func (f uoaFrame) buildTo(t rapid.TB, mac net.HardwareAddr) []byte {
	t.Helper()
	o := toaOption(31, f.client) // by the book: docs/uoa.md
	if f.apart {
		o = append(o, 0, 0, 0, 0)
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(f.from.Port()), DstPort: layers.UDPPort(f.to.Port())}
	eth := &layers.Ethernet{SrcMAC: peerMAC, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}
	next := layers.IPProtocolUDP
	if f.by == "protocol" {
		next = 248
	}
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	if f.to.Addr().Is4() {
		l := &layers.IPv4{Version: 4, Id: 0x4711, TTL: 64, Protocol: next, SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()}
		if f.by == "option" {
			l.Options = append(l.Options, layers.IPv4Option{OptionType: 31, OptionLength: o[1], OptionData: o[2:o[1]]})
			for range len(o) - int(o[1]) {
				l.Options = append(l.Options, layers.IPv4Option{OptionType: 0, OptionLength: 1})
			}
		}
		for range 4 * f.options {
			l.Options = append(l.Options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
		}
		if f.more {
			l.Flags = layers.IPv4MoreFragments
		}
		ip, network = l, l
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		l := &layers.IPv6{Version: 6, TrafficClass: 8, FlowLabel: 0x12345, HopLimit: 64, NextHeader: next, SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()}
		ip, network = l, l
	}
	if err := udp.SetNetworkLayerForChecksum(network); err != nil {
		t.Fatal(err)
	}
	body := bytesOf(t, udp, gopacket.Payload(f.payload))
	if f.by == "protocol" {
		version := byte(0x10)
		if f.client.Addr().Is6() {
			version = 0x20
		}
		body = slices.Concat([]byte{version, 17}, binary.BigEndian.AppendUint16(nil, uint16(4+len(o))), o, body)
	}
	all := []gopacket.SerializableLayer{eth}
	if f.vlan {
		all = append(all, &layers.Dot1Q{VLANIdentifier: 7, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	return bytesOf(t, append(all, ip, gopacket.Payload(body))...)
}

func bytesOf(t rapid.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(b.Bytes())
}

// loadedUOA loads the programs, attached to nothing.
func loadedUOA(t *testing.T) (*UOA, *uoaObjects) {
	t.Helper()
	u, objs, err := loadUOAPrograms(UOAOptions{Interfaces: []string{"s0"}, From: balancers, Clients: 1000, Timeout: time.Hour})
	must(t, err)
	t.Cleanup(func() { must(t, u.Close()) })
	return u, objs
}

// flowKey and clientValue are struct flow and struct client of uoa.c.
type flowKey struct {
	Peer, Local         [16]byte
	PeerPort, LocalPort [2]byte
}

type clientValue struct {
	Addr, Local [16]byte
	Port        [2]byte
	_           [6]byte
	Born, Seen  uint64
}

// known is whom a socket bound to local, an address or none, takes a datagram for.
func known(t rapid.TB, objs *uoaObjects, from, to netip.AddrPort, local [16]byte) (client netip.AddrPort, ambiguous bool) {
	t.Helper()
	k := flowKey{Peer: from.Addr().As16(), Local: local, PeerPort: htons(from.Port()), LocalPort: htons(to.Port())}
	var v clientValue
	if err := objs.Clients.Lookup(k, &v); err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(netip.AddrFrom16(v.Addr).Unmap(), binary.BigEndian.Uint16(v.Port[:])), v.Local == [16]byte{}
}

var uoaFrom = map[testbed.Family]netip.AddrPort{
	testbed.V4: netip.AddrPortFrom(balancer[testbed.V4], 20001), testbed.V6: netip.AddrPortFrom(balancer[testbed.V6], 20001),
}

func uoaTo(f testbed.Family) netip.AddrPort { return netip.AddrPortFrom(serverNet[f].Addr(), 53) }

// TestUOATaken: what passes is the datagram without the header, or, with the option, as
// it came; the client is known; and what the balancer has made for that goes nowhere.
func TestUOATaken(t *testing.T) {
	u, objs := loadedUOA(t)
	n := 0
	for _, f := range testbed.Families {
		for _, client := range []netip.AddrPort{client4, client6} {
			for _, by := range []string{"protocol", "option"} {
				if by == "option" && (f == testbed.V6 || client == client6) || f == testbed.V6 && client == client4 {
					continue
				}
				for name, change := range map[string]func(*uoaFrame){
					"plain":              func(*uoaFrame) {},
					"VLAN":               func(f *uoaFrame) { f.vlan = true },
					"options":            func(f *uoaFrame) { f.options = 3 },
					"VLAN and options":   func(f *uoaFrame) { f.vlan, f.options = true, 1 },
					"empty":              func(f *uoaFrame) { f.payload = "" },
					"apart":              func(f *uoaFrame) { f.payload, f.apart = "", true },
					"apart, VLAN":        func(f *uoaFrame) { f.payload, f.apart, f.vlan = "", true, true },
					"the end, with data": func(f *uoaFrame) { f.apart = true },
					"large":              func(f *uoaFrame) { f.payload = string(make([]byte, 1400)) },
				} {
					t.Run(fmt.Sprint(by, f, client, name), func(t *testing.T) {
						n++
						x := uoaFrame{by: by, client: client, from: netip.AddrPortFrom(uoaFrom[f].Addr(), uint16(2000+n)), to: uoaTo(f), payload: "hello"}
						change(&x)
						if f == testbed.V6 || by == "option" && x.apart {
							x.options = 0
						}
						frame := x.build(t)
						before, err := u.Stats()
						must(t, err)
						verdict, out, err := objs.L4fwdUoa.Test(frame)
						must(t, err)
						after, err := u.Stats()
						must(t, err)
						want := map[string]uint64{by: 1}
						apart := x.apart && x.payload == ""
						if apart {
							want["separate"] = 1
						}
						if diff := cmp.Diff(want, difference(before, after)); diff != "" {
							t.Errorf("(-want +got)\n%s", diff)
						}
						l2 := 14
						if x.vlan {
							l2 = 18
						}
						read, ok := testbed.ReadUOA(frame[l2:])
						if !ok || read.Client != client {
							t.Fatalf("the frame is wrong: %+v", read)
						}
						pass := slices.Concat(frame[:l2], read.Plain)
						if by == "option" {
							pass = frame
						}
						if (verdict == 1) != apart || !apart && !bytes.Equal(out, pass) {
							t.Errorf("verdict %d:\n%x came out, not\n%x", verdict, out, pass)
						}
						for _, local := range [][16]byte{x.to.Addr().As16(), {}} {
							if got, ambiguous := known(t, objs, x.from, x.to, local); got != client || ambiguous {
								t.Errorf("%x takes it for %s, %v", local, got, ambiguous)
							}
						}
					})
				}
			}
		}
	}
}

// TestUOALeft: what is no UOA, not as it should be, or not a balancer's passes as it came,
// and nobody is known by it.
func TestUOALeft(t *testing.T) {
	u, objs := loadedUOA(t)
	good := uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: uoaTo(testbed.V4), payload: "hello"}
	six := uoaFrame{by: "protocol", client: client6, from: uoaFrom[testbed.V6], to: uoaTo(testbed.V6), payload: "hello"}
	option := good
	option.by = "option"
	edit := func(f uoaFrame, at int, b byte) []byte {
		frame := f.build(t)
		frame[at] = b
		return frame
	}
	with := func(f uoaFrame, change func(*uoaFrame)) []byte {
		change(&f)
		return f.build(t)
	}
	for name, c := range map[string]struct {
		frame []byte
		want  string
	}{
		"none":                  {with(good, func(f *uoaFrame) { f.by = "none" }), ""},
		"none, IPv6":            {with(six, func(f *uoaFrame) { f.by = "none" }), ""},
		"options alone":         {with(good, func(f *uoaFrame) { f.by, f.options = "none", 2 }), ""},
		"stranger":              {with(good, func(f *uoaFrame) { f.from = netip.AddrPortFrom(stranger[testbed.V4], 1) }), "refused"},
		"stranger, IPv6":        {with(six, func(f *uoaFrame) { f.from = netip.AddrPortFrom(stranger[testbed.V6], 1) }), "refused"},
		"stranger, option":      {with(option, func(f *uoaFrame) { f.from = netip.AddrPortFrom(stranger[testbed.V4], 1) }), "refused"},
		"fragment":              {with(good, func(f *uoaFrame) { f.more = true }), "fragment"},
		"fragment, option":      {with(option, func(f *uoaFrame) { f.more = true }), ""},
		"not before UDP":        {edit(good, 35, 6), "malformed"},
		"length 0":              {edit(good, 37, 0), "malformed"},
		"length cut":            {edit(good, 37, 8), "malformed"},
		"length odd":            {edit(good, 37, 13), "malformed"},
		"length huge":           {edit(good, 36, 1), "malformed"},
		"length beyond":         {edit(good, 37, 60), "malformed"},
		"of the other version":  {edit(good, 34, 0x20), "malformed"},
		"another option":        {edit(good, 38, 30), "malformed"},
		"option's length":       {edit(good, 39, 9), "malformed"},
		"option's length 20":    {edit(good, 39, 20), "malformed"},
		"option's length, IPv6": {edit(six, 59, 21), "malformed"},
		"option of 20":          {edit(option, 35, 20), "malformed"},
		"option of 0":           {edit(option, 35, 0), "malformed"},
		"no IPv4":               {edit(good, 14, 0x65), ""},
		"header of 16":          {edit(good, 14, 0x44), ""},
		"TCP":                   {edit(option, 23, 6), ""},
		"cut":                   {good.build(t)[:14+20+12+7], "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := u.Stats()
			must(t, err)
			verdict, out, err := objs.L4fwdUoa.Test(c.frame)
			must(t, err)
			after, err := u.Stats()
			must(t, err)
			want := map[string]uint64{}
			if c.want != "" {
				want[c.want] = 1
			}
			if diff := cmp.Diff(want, difference(before, after)); diff != "" || verdict != 2 || !bytes.Equal(out, c.frame) {
				t.Errorf("verdict %d, %x became %x (-want +got)\n%s", verdict, c.frame, out, diff)
			}
			var k flowKey
			var v clientValue
			if objs.Clients.Iterate().Next(&k, &v) {
				t.Fatalf("known: %+v", v)
			}
		})
	}
}

// TestUOATwin: of any frame that nearly is a balancer's, what passes is what a reader that
// shares nothing with the program makes of it.
func TestUOATwin(t *testing.T) {
	_, objs := loadedUOA(t)
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(testbed.Families[:]).Draw(t, "family")
		x := uoaFrame{
			by: rapid.SampledFrom([]string{"protocol", "protocol", "option", "none"}).Draw(t, "by"), client: rapid.SampledFrom([]netip.AddrPort{client4, client6}).Draw(t, "client"),
			from: uoaFrom[f], to: uoaTo(f), apart: rapid.Bool().Draw(t, "apart"), payload: rapid.SampledFrom([]string{"", "x", "hello"}).Draw(t, "payload"),
			options: rapid.IntRange(0, 3).Draw(t, "options"),
		}
		if x.by == "option" && x.client == client6 {
			x.client = client4 // nobody sends the other
		}
		frame := x.build(t)
		at := rapid.IntRange(14, min(len(frame), 90)-1).Draw(t, "at")
		if rapid.Bool().Draw(t, "damage") {
			frame[at] ^= rapid.Byte().Draw(t, "by")
		}
		verdict, out, err := objs.L4fwdUoa.Test(frame)
		if err != nil {
			t.Fatal(err)
		}
		changed := verdict != 2 || !bytes.Equal(out, frame)
		if !changed {
			return
		}
		ip := frame[14:]
		read, ok := testbed.ReadUOA(ip)
		if !ok {
			t.Fatalf("%x became %x", frame, out)
		}
		if verdict == 1 {
			if !read.Apart {
				t.Fatalf("%x was dropped", frame)
			}
			return
		}
		plain := slices.Clone(read.Plain)
		got := out[14:]
		if ip[0]>>4 == 4 {
			// A damaged header must stay so: the reader sums afresh.
			clear(plain[10:12])
			got = slices.Clone(got)
			clear(got[10:12])
		}
		if !bytes.Equal(plain, got) {
			t.Fatalf("%x became\n%x, not\n%x", frame, got, plain)
		}
	})
}

func TestUOAOptions(t *testing.T) {
	from := []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}
	for name, o := range map[string]UOAOptions{
		"nobody to believe":     {Interfaces: []string{"s0"}},
		"no interface":          {From: from},
		"a prefix that is none": {Interfaces: []string{"s0"}, From: []netip.Prefix{{}}},
		"too many clients":      {Interfaces: []string{"s0"}, From: from, Clients: 1 << 30},
		"negative clients":      {Interfaces: []string{"s0"}, From: from, Clients: -1},
		"a short timeout":       {Interfaces: []string{"s0"}, From: from, Timeout: time.Millisecond},
		"no cgroup":             {Interfaces: []string{"s0"}, From: from, Cgroup: "/nowhere"},
		"another filesystem":    {Interfaces: []string{"s0"}, From: from, Cgroup: "/proc"},
	} {
		if _, err := AttachUOA(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

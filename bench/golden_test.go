package bench_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// `make golden` renews testdata/golden. Look at what `l4fwd bench diff` says of
// the old and the new files before committing them.
var update = flag.Bool("update", false, "renew the captures of testdata/golden")

const goldenSeed = 1

// goldenServices are the names in golden.yaml, each with a spec of its own.
func goldenServices(t testing.TB) (out []dataplane.Spec, ports []nat.PortRange) {
	t.Helper()
	cfg, err := config.Load("testdata/golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range cfg.Services {
		spec := plan.Spec(cfg, nil)
		spec.Services = spec.Services[i : i+1]
		out = append(out, spec)
	}
	return out, plan.PortRanges(cfg)
}

// golden reads a file of testdata/golden, after it wrote it if that is asked
// for.
func golden(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// explain fails with words if two captures are not the same to the byte.
func explain(t *testing.T, name string, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	a, b := read(t, want), read(t, got)
	a.Name, b.Name = "the golden "+name, "this run"
	var words strings.Builder
	if _, err := bench.Diff(&words, a, b, 10); err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s is another (make golden renews it):\n%s", name, &words)
}

// What is sent for a capture is what was sent for it when it was recorded.
func TestGolden(t *testing.T) {
	specs, ports := goldenServices(t)
	total := 0
	for _, spec := range specs {
		name := spec.Services[0].Name
		t.Run(name, func(t *testing.T) {
			made := generate(t, bench.GenOptions{Spec: spec, Flows: 5, Packets: 40, Size: 130, Seed: goldenSeed})
			in := golden(t, name+".in.pcap", made)
			explain(t, name+".in.pcap", in, made)
			var b bytes.Buffer
			allForwarded(t, replay(t, in, bench.Options{Spec: spec, LocalPorts: ports, Seed: goldenSeed, Output: &b}))
			out := golden(t, name+".out.pcap", b.Bytes())
			explain(t, name+".out.pcap", out, b.Bytes())
			if total += len(in) + len(out); len(in) > 100<<10 || len(out) > 100<<10 {
				t.Errorf("%d and %d bytes, want at most 100 KiB each", len(in), len(out))
			}
		})
	}
	if total > 600<<10 {
		t.Errorf("%d bytes in all, want at most 600 KiB", total)
	}
}

// The same services over several loops, sizes and workers: nothing is dropped.
func TestGoldenServicesLoop(t *testing.T) {
	specs, _ := goldenServices(t)
	for _, spec := range specs {
		t.Run(spec.Services[0].Name, func(t *testing.T) {
			for _, size := range []int{64, 1518} {
				made := generate(t, bench.GenOptions{Spec: spec, Flows: 20, Packets: 400, Size: size})
				allForwarded(t, replay(t, made, bench.Options{Spec: spec, Loops: 3, Workers: 2, Output: io.Discard}))
			}
		})
	}
}

// What was recorded is right, gopacket says: checksums, addresses, and the
// client's address in every packet that has to tell it.
func TestGoldenSound(t *testing.T) {
	specs, _ := goldenServices(t)
	for _, spec := range specs {
		svc := &spec.Services[0]
		t.Run(svc.Name, func(t *testing.T) {
			in, err := os.ReadFile(filepath.Join("testdata", "golden", svc.Name+".in.pcap"))
			if err != nil {
				t.Fatal(err)
			}
			out, err := os.ReadFile(filepath.Join("testdata", "golden", svc.Name+".out.pcap"))
			if err != nil {
				t.Fatal(err)
			}
			was, is := frames(t, in), frames(t, out)
			if len(was) != len(is) {
				t.Fatalf("%d packets became %d", len(was), len(is))
			}
			told := map[string]bool{}
			for i := range was {
				checksums(t, was[i])
				if svc.Tunnel.Kind != nat.NoTunnel {
					is[i] = goldenTunnel(t, i, svc, was[i], is[i])
				}
				checksums(t, is[i])
				goldenPacket(t, i, svc, was[i], is[i], told)
			}
			if toTell := svc.TOA || svc.Proxy != nat.NoProxy; toTell != (len(told) == 5) {
				t.Errorf("%d clients of 5 were told of", len(told))
			}
		})
	}
}

// oneHopOn is frame from its EtherType on, with what a hop changes: the TTL, and the
// checksum over it, which is taken from what the hop sent.
func oneHopOn(frame, sent []byte) []byte {
	b := slices.Clone(frame[packet.EthType:])
	if ip := b[packet.EthLen-packet.EthType:]; ip[0]>>4 == 6 {
		ip[packet.IPv6HopLimit]--
	} else {
		ip[packet.IPv4TTL]--
		copy(ip[packet.IPv4Checksum:packet.IPv4Checksum+2], sent[packet.EthLen+packet.IPv4Checksum:])
	}
	return b
}

// goldenPacket compares packet i with what became of it.
func goldenPacket(t *testing.T, i int, svc *dataplane.ServiceSpec, was, is frame, told map[string]bool) {
	t.Helper()
	vip := fmt.Sprint(svc.VIP.Addr, " ", svc.VIP.Port)
	client, dst := was.ends()
	src, to := is.ends()
	if dst != vip { // a reply
		if src != vip || to == dst && svc.Name[:4] != "dnat" {
			t.Errorf("packet %d: reply %s to %s", i+1, src, to)
		}
		if !bytes.Equal(was.payload(), is.payload()) {
			t.Errorf("packet %d: another payload", i+1)
		}
		return
	}
	backend := &svc.Backends[0].Endpoint
	if svc.Mode == conntrack.DirectReturn {
		backend = &svc.VIP
		if svc.Tunnel.Kind == nat.NoTunnel && !bytes.Equal(oneHopOn(was.Data(), is.Data()), is.Data()[packet.EthType:]) {
			t.Errorf("packet %d changed", i+1)
		}
	}
	if len(svc.Backends) == 1 && to != fmt.Sprint(backend.Addr, " ", backend.Port) {
		t.Errorf("packet %d goes to %s", i+1, to)
	}
	addr, port, _ := strings.Cut(client, " ")
	n, _ := strconv.ParseUint(port, 10, 16)
	from := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(n))
	tells := false
	if tcp := is.tcp(); tcp != nil {
		for _, o := range tcp.Options {
			if o.OptionType == 254 {
				tells = true
				if a, _ := netip.AddrFromSlice(o.OptionData[2:]); netip.AddrPortFrom(a, binary.BigEndian.Uint16(o.OptionData)) != from {
					t.Errorf("packet %d: TOA %x, want %v", i+1, o.OptionData, from)
				}
			}
		}
	}
	if header, ok := bytes.CutSuffix(is.payload(), was.payload()); !ok {
		t.Errorf("packet %d: another payload", i+1)
	} else if len(header) > 0 {
		tells = true
		if want := proxyWanted(svc, from); string(header) != want {
			t.Errorf("packet %d: header %q, want %q", i+1, header, want)
		}
	}
	if tells {
		told[client] = true
	}
	if ack := is.tcp(); ack != nil && !ack.SYN && !told[client] && (svc.TOA || svc.Proxy != nat.NoProxy) {
		t.Errorf("packet %d: says nothing of %s", i+1, client)
	}
}

// goldenTunnel is the frame that packet i's tunnel holds. It goes to a backend, and
// what it holds has lost a TTL and nothing else.
func goldenTunnel(t *testing.T, i int, svc *dataplane.ServiceSpec, was, is frame) frame {
	t.Helper()
	to := is.NetworkLayer().NetworkFlow().Dst().String()
	if !slices.ContainsFunc(svc.Backends, func(b dataplane.BackendSpec) bool { return b.Endpoint.Addr.String() == to }) {
		t.Errorf("packet %d goes to %s", i+1, to)
	}
	more := svc.Tunnel.Overhead(svc.Backends[0].Endpoint.Addr.Is4())
	inner := append(slices.Clone(was.Data()[:packet.EthLen]), is.Data()[packet.EthLen+more:]...)
	want := slices.Clone(was.Data())
	if ip := want[packet.EthLen:]; ip[0]>>4 == 6 {
		ip[packet.IPv6HopLimit]--
	} else {
		ip[packet.IPv4TTL]--
		copy(ip[packet.IPv4Checksum:], inner[packet.EthLen+packet.IPv4Checksum:][:2])
	}
	if !bytes.HasPrefix(want, inner) { // padding
		t.Errorf("packet %d holds\n%x\nwant\n%x", i+1, inner, want)
	}
	return frame{gopacket.NewPacket(inner, layers.LayerTypeEthernet, gopacket.Default), is.at}
}

// proxyWanted is the PROXY header as its specification has it.
func proxyWanted(svc *dataplane.ServiceSpec, client netip.AddrPort) string {
	vip := svc.VIP.Addr.Netip()
	switch svc.Proxy {
	case nat.ProxyV1:
		return fmt.Sprintf("PROXY TCP%s %v %v %d %d\r\n", map[bool]string{true: "4", false: "6"}[vip.Is4()], client.Addr(), vip, client.Port(), svc.VIP.Port)
	case nat.ProxyV2:
		head := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
		if !vip.Is4() {
			head = "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24"
		}
		ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, client.Port()), svc.VIP.Port)
		return head + string(client.Addr().AsSlice()) + string(vip.AsSlice()) + string(ports)
	}
	return ""
}

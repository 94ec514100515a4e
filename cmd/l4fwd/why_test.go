package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/capture/pcapng"
	"github.com/l4fwd/l4fwd/control/why"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/packet"
)

// why asks the forwarder.
func (c *capturing) why(args ...string) (out []admin.Why, text string) {
	c.t.Helper()
	b, err := c.LB.Command(c.ctx, c.path, append([]string{"why", "--socket", c.socket, "-o", "json"}, args...)...).CombinedOutput()
	if err != nil {
		return nil, string(b)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		c.t.Fatalf("%v: %s", err, b)
	}
	return out, string(b)
}

// wire is a client's packet as it comes to the forwarder.
func (c *capturing) wire(p why.Packet) []byte {
	c.t.Helper()
	f, err := p.Frame([6]byte(c.LBClient.MAC), [6]byte(c.ClientDev.MAC), 0, false)
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

// save writes frames into a capture file.
func (c *capturing) save(name string, frames ...[]byte) string {
	c.t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	noError(c.t, w.WriteFileHeader(65536, layers.LinkTypeEthernet))
	for _, f := range frames {
		noError(c.t, w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Now(), CaptureLength: len(f), Length: len(f)}, f))
	}
	name = filepath.Join(c.dir, name)
	noError(c.t, os.WriteFile(name, b.Bytes(), 0o644))
	return name
}

// sends has the client send a frame and returns what is captured as sent on its account.
func (c *capturing) sends(frame []byte, filter ...string) (sent [][]byte, comments []string) {
	c.t.Helper()
	file := filepath.Join(c.dir, "sent.pcapng")
	p := c.start(append([]string{"--point", "both", "--count", "2", "-w", file}, filter...)...)
	noError(c.t, c.ClientDev.Inject(frame))
	noError(c.t, p.WaitOutput(c.ctx, "2 frames captured, 0 missed"))
	b, err := os.ReadFile(file)
	noError(c.t, err)
	noError(c.t, pcapng.Read(bytes.NewReader(b), func(b *pcapng.Block) error {
		if b.Packet != nil {
			comments = append(comments, b.Packet.Comment)
			if b.Packet.Flags == pcapng.Outbound {
				sent = append(sent, bytes.Clone(b.Packet.Data))
			}
		}
		return nil
	}))
	return sent, comments
}

// unnumbered is a frame without what goes with the time: of TCP the sequence number and
// the checksum.
func unnumbered(frame []byte) []byte {
	var p packet.Packet
	out := bytes.Clone(frame)
	if packet.Parse(out, &p) == packet.ErrNone && p.Kind == packet.KindTCP {
		clear(out[int(p.L4)+packet.TCPSeq:][:4])
		clear(out[int(p.L4)+packet.TCPChecksum:][:2])
	}
	return out
}

// What why says of a packet is what becomes of it when it is sent.
func TestWhyAndThenSent(t *testing.T) {
	c := newCapturing(t)
	c.ask() // everybody knows everybody's MAC address
	client := c.ClientAddr(testbed.V4, 0)
	for name, p := range map[string]why.Packet{
		"tcp": {Protocol: packet.ProtoTCP, Flags: packet.SYN, Seq: 77, Destination: netip.AddrPortFrom(c.VIP(testbed.V4, 0), testbed.VIPPortHTTP)},
		"udp": {Protocol: packet.ProtoUDP, Payload: 100, Destination: netip.AddrPortFrom(c.VIP(testbed.V4, 0), testbed.PortEcho)},
	} {
		p.Source, p.TTL = netip.AddrPortFrom(client, 41000), 64
		frame := c.wire(p)
		said, text := c.why("--pcap", c.save(name+".pcap", frame))
		if len(said) != 1 || len(said[0].Sent) != 1 || said[0].Opens == nil || said[0].Verdict != "forwarded" || said[0].Choice == nil {
			t.Fatalf("%s: %s", name, text)
		}
		a := &said[0]
		sent, comments := c.sends(frame, "host", client.String(), "and", "port", "41000")
		if len(sent) != 1 {
			t.Fatalf("%s: %q", name, comments)
		}
		if d := cmp.Diff(unnumbered(sent[0]), unnumbered(a.Sent[0].Frame)); d != "" {
			t.Errorf("%s: -sent +said\n%s", name, d)
		}
		if want := "backend " + a.Opens.Backend.String(); !strings.Contains(comments[0], want) || !strings.Contains(comments[0], "local "+a.Opens.Local.String()) {
			t.Errorf("%s: %s: want %s, local %v", name, comments[0], want, a.Opens.Local)
		}
		// Now there is a flow, of TCP one that the client's kernel has reset by now.
		again, text := c.why("--pcap", filepath.Join(c.dir, name+".pcap"))
		if len(again) != 1 || again[0].Flow == nil || name == "udp" && again[0].Opens != nil || again[0].Flow.Backend != a.Opens.Backend {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// What is the kernel's, what is dropped and why, a foreign MAC address, and mistakes.
func TestWhyNot(t *testing.T) {
	c := newCapturing(t)
	c.ask()
	client, vip := c.ClientAddr(testbed.V4, 0).String(), c.VIP(testbed.V4, 0).String()
	before := c.settled()
	for args, want := range map[string]admin.Why{
		"tcp " + client + ":4000 " + c.LBClient.Addr(testbed.V4).String() + ":22": {XDP: admin.WhyXDP{Outcome: "pass_other"}},
		"udp " + client + ":67 " + vip + ":68":                                    {XDP: admin.WhyXDP{Outcome: "pass_other"}},
		"udp " + client + ":4000 " + vip + ":9":                                   {XDP: admin.WhyXDP{Taken: true, Outcome: "take_address"}, Verdict: "no_service", Dropped: true},
		"tcp " + client + ":4000 " + vip + ":80 --flags fin,ack":                  {XDP: admin.WhyXDP{Taken: true, Outcome: "take_address"}, Verdict: "no_flow", Dropped: true},
		"tcp " + client + ":4000 " + vip + ":80 --ttl 1":                          {XDP: admin.WhyXDP{Taken: true, Outcome: "take_address"}, Verdict: "ttl_exceeded", Dropped: true},
	} {
		said, text := c.why(strings.Fields(args)...)
		if len(said) != 1 {
			t.Errorf("%s: %s", args, text)
			continue
		}
		got := admin.Why{XDP: said[0].XDP, Verdict: said[0].Verdict, Dropped: said[0].Dropped}
		if got.XDP.Rule = ""; !cmp.Equal(got, want) || got.Dropped && said[0].Do == "" {
			t.Errorf("%s: %s", args, text)
		}
		if answers := len(said[0].Sent); (want.Verdict == "ttl_exceeded") != (answers == 1 && said[0].Sent[0].Own) {
			t.Errorf("%s: %d frames sent: %s", args, answers, text)
		}
	}
	if after := c.verdicts(); !cmp.Equal(before, after) {
		t.Errorf("the questions are counted: %s", cmp.Diff(before, after))
	}
	foreign := c.wire(why.Packet{Protocol: packet.ProtoTCP, Flags: packet.SYN, TTL: 64, Source: netip.MustParseAddrPort(client + ":4000"), Destination: netip.MustParseAddrPort(vip + ":80")})
	foreign[5]++
	said, text := c.why("--on", "l0", "--pcap", c.save("foreign.pcap", foreign))
	if len(said) != 1 || !said[0].XDP.Taken || !strings.Contains(strings.Join(said[0].Notes, " "), "XDP leaves such a frame to the kernel") {
		t.Errorf("to another MAC address: %s", text)
	}
	table, err := c.LB.Command(c.ctx, c.path, "why", "--socket", c.socket, "tcp", client+":4000", vip+":80").Output()
	if noError(t, err); !strings.Contains(string(table), "forwarded") || !strings.Contains(string(table), "opens one") {
		t.Errorf("%s", table)
	}
	for args, want := range map[string]string{
		"tcp 1.2.3.4:5":                               "expected PROTOCOL SOURCE DESTINATION",
		"":                                            "expected PROTOCOL SOURCE DESTINATION",
		"gre 1.2.3.4:5 1.2.3.4:6":                     `protocol "gre"`,
		"tcp 1.2.3.4:5 [2001:db8::1]:6":               "one family",
		"tcp 1.2.3.4:5 1.2.3.4:6 --on x":              "x is none of the interfaces",
		"tcp 1.2.3.4:5 1.2.3.4:0":                     "port 0",
		"tcp 1.2.3.4 1.2.3.4:6":                       "source: ",
		"tcp 1.2.3.4:5 1.2.3.4:6 --flags syn,up":      `TCP flag "up"`,
		"tcp 1.2.3.4:5 " + vip + ":80 --payload 3000": "does not fit",
		"--pcap " + filepath.Join(c.dir, "none"):      "no such file",
	} {
		if said, text := c.why(strings.Fields(args)...); said != nil || !strings.Contains(text, want) {
			t.Errorf("%q: %s, want %s", args, text, want)
		}
	}
}

// verdicts is what has become of packets so far.
func (c *capturing) verdicts() map[string]uint64 {
	c.t.Helper()
	out, err := c.LB.Command(c.ctx, c.path, "stats", "--socket", c.socket, "-o", "json").Output()
	noError(c.t, err)
	var s admin.Stats
	noError(c.t, json.Unmarshal(out, &s))
	return s.Verdicts
}

// settled is the same once no packet comes any more: the ends of connections follow what
// has been asked for, on a busy machine after they were sent again.
func (c *capturing) settled() map[string]uint64 {
	c.t.Helper()
	for was := c.verdicts(); ; {
		time.Sleep(500 * time.Millisecond)
		now := c.verdicts()
		if cmp.Equal(was, now) || c.ctx.Err() != nil {
			return now
		}
		was = now
	}
}

package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestHealthCheckKeys(t *testing.T) {
	c := mustLoad(t, "testdata/good/health.yaml")
	like := func(p Protocol, change func(*HealthCheck)) HealthCheck {
		h := defaultHealthCheck()
		h.Passive.Action = PassiveCheck
		change(&h)
		h.inherit(p)
		return h
	}
	want := []HealthCheck{
		{
			Type: CheckHTTPS, Interval: 5 * time.Second, Timeout: 3 * time.Second, FastInterval: 500 * time.Millisecond,
			Rise: 1, Fall: 100, OnDown: OnDownEnd, SlowStart: 30 * time.Second, PanicThreshold: 50,
			Source: addr("10.0.2.254"), Port: 8443,
			Method: "OPTIONS", Path: "/health?deep=1", Host: "www.example.org:8443",
			ExpectStatus: Statuses{{200, 200}, {204, 204}, {300, 399}}, ExpectBody: `"status": *"(ok|fine)"`,
			ServerName: "sni.example.org", TLSVerify: true,
			DNSName: ".", DNSType: 2, DNSRCode: 1,
			Passive: Passive{PassiveDown, 20, 33, time.Minute, 2 * time.Hour},
		},
		like(UDP, func(h *HealthCheck) { h.Type, h.Send, h.Expect = CheckUDP, Bytes{0, 255, 42}, Bytes("hello") }),
		like(UDP, func(h *HealthCheck) {
			h.Type, h.DNSName, h.DNSType, h.DNSRCode, h.OnDown = CheckDNS, "www.example.org.", 8, 4, OnDownKeep
		}),
		like(TCP, func(h *HealthCheck) {
			h.Type, h.Command = CheckExec, []string{"/usr/local/bin/check", "-x", `a "quoted" word`, "7"}
		}),
		like(TCP, func(h *HealthCheck) {
			h.Type, h.Source, h.Passive.Action = CheckPing, addr("2001:db8:1::1"), PassiveOff
		}),
		like(TCP, func(h *HealthCheck) { h.Type, h.Passive.Action, h.PanicThreshold = CheckNone, PassiveDown, 10 }),
	}
	var got []HealthCheck
	for _, s := range c.Services {
		got = append(got, s.HealthCheck)
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if b := c.Services[0].Backends; b[0].Backup || !b[1].Backup {
		t.Errorf("backups: %v", b)
	}
	if n := got[2].DNSType.Number(); n != 28 {
		t.Errorf("aaaa is %d", n)
	}
	if n := got[2].DNSRCode.Number(); n != 3 {
		t.Errorf("nxdomain is %d", n)
	}
	if got[1].OnDown != OnDownEnd || got[3].OnDown != OnDownKeep || got[1].FastInterval != 2*time.Second {
		t.Errorf("what follows from other keys: %+v", got)
	}
}

func TestDiffHealthCheck(t *testing.T) {
	const file = "testdata/good/health.yaml"
	src := strings.Replace(string(read(t, file)), "rise: 1\n", "rise: 4\n", 1)
	src = strings.Replace(src, ", backup: true", "", 1)
	b, err := Parse("new", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range Diff(mustLoad(t, file), b) {
		got = append(got, c.String())
	}
	want := []string{"services[web].health_check.rise: 1 → 4", "services[web].backends[10.0.2.2:8080].backup: true → false"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// drawHealthCheck is one that an IPv4 service may have.
func drawHealthCheck(t *rapid.T, p Protocol) HealthCheck {
	h := defaultHealthCheck()
	h.Type = CheckType(rapid.IntRange(1, len(checkTypeNames)).Draw(t, "check"))
	if h.Type != CheckNone {
		h.Interval = minTimeout + timeDraw(t, "interval")
		h.Timeout = min(h.Interval, minTimeout+timeDraw(t, "of a check"))
		h.FastInterval = min(h.Interval, minTimeout+timeDraw(t, "fast"))
		h.Rise, h.PanicThreshold = rapid.IntRange(1, 100).Draw(t, "rise"), rapid.IntRange(0, 100).Draw(t, "panic")
	}
	if draw := rapid.IntRange(0, 2).Draw(t, "passive"); draw > 0 || h.Type == CheckNone {
		h.Passive.Action = rapid.SampledFrom([]PassiveAction{PassiveOff, PassiveDown}).Draw(t, "action")
		if h.Passive.Action == PassiveDown {
			h.Passive.Share, h.Passive.DownFor = rapid.IntRange(1, 100).Draw(t, "share"), minTimeout+timeDraw(t, "down for")
		}
	} else {
		h.Passive.Action = PassiveCheck
	}
	visible := rapid.StringMatching(`[ -~é☃]{0,30}`)
	switch h.Type {
	case CheckHTTP:
		h.Path, h.Host = rapid.StringMatching(`/[!-~]{0,30}`).Draw(t, "path"), rapid.StringMatching(`[!-.0-?A-~]{0,30}`).Draw(t, "host")
		first := rapid.IntRange(100, 599).Draw(t, "status")
		h.ExpectStatus = Statuses{{first, rapid.IntRange(first, 599).Draw(t, "last")}}
		h.ExpectBody = strings.ReplaceAll(rapid.StringMatching(`[ -'/-;=@-Za-z"é☃]{0,30}`).Draw(t, "body"), "(", "")
	case CheckUDP:
		h.Send = rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "send")
		h.Expect = Bytes(visible.Draw(t, "expect"))
		for _, b := range []*Bytes{&h.Send, &h.Expect} {
			if len(*b) == 0 {
				*b = nil
			}
		}
	case CheckDNS:
		h.DNSType = DNSType(rapid.IntRange(1, len(dnsTypeNames)).Draw(t, "type"))
	case CheckExec:
		h.Command = append([]string{"/bin/x"}, rapid.SliceOfN(visible, 0, 3).Draw(t, "arguments")...)
	}
	h.inherit(p)
	return h
}

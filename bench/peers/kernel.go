package peers

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/l4fwd/l4fwd/bench/liveframes"
)

// kernel is the kernel's own forwarding, with NAT by nftables or without.
type kernel struct {
	nft  bool
	up   bool
	pass io.Closer // takes the XDP program away, nil if there is none
}

// nftRules has a statement on each line; HTTP goes to another port than it came to.
var nftRules = fmt.Sprintf(`table ip l4fwd_bench {
	chain pre {
		type nat hook prerouting priority dstnat;
		ip daddr %[1]s tcp dport %[2]d dnat to %[3]s:%[4]d
		ip daddr %[1]s tcp dport %[5]d dnat to %[3]s:%[5]d
		ip daddr %[1]s udp dport %[6]d dnat to %[3]s:%[6]d
	}
	chain post {
		type nat hook postrouting priority srcnat;
		oifname "l1" snat to %[7]s-%[8]s
	}
}
`, vipAddr, portHTTP, serverAddr.Addr(), portHTTPInner, portIperf, portUDP, firstLocal, lastLocal)

// conntrackSysctls bring the kernel's timeouts for what is over to l4fwd's, or
// its table, whose size only the host can change, fills up.
var conntrackSysctls = []struct{ key, value string }{
	{"net.netfilter.nf_conntrack_tcp_timeout_time_wait", "10"},
	{"net.netfilter.nf_conntrack_tcp_timeout_close", "10"},
	{"net.netfilter.nf_conntrack_tcp_timeout_last_ack", "10"},
}

func (k *kernel) start(ctx context.Context, n *network, t traffic) error {
	if k.up {
		return k.passUDP(n, t)
	}
	if err := n.balancer.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if k.nft {
		file := n.file(fileConfig)
		if err := os.WriteFile(file, []byte(nftRules), 0o600); err != nil {
			return err
		}
		if out, err := n.balancer.Command(ctx, "nft", "-f", file).CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(string(out)))
		}
		for _, s := range conntrackSysctls {
			if err := n.balancer.Sysctl(s.key, s.value); err != nil {
				return err
			}
		}
	}
	k.up = true
	return k.passUDP(n, t)
}

// passUDP readies the client's side for frames that come from an XDP program, or
// they are lost. TCP comes without, and is better off so.
func (k *kernel) passUDP(n *network, t traffic) error {
	if t != udp {
		return k.stop()
	}
	if k.pass != nil {
		return nil
	}
	var err error
	k.pass, err = liveframes.AttachPass(n.balancer, n.l0.Name)
	return err
}

// stop takes the program away and leaves rules and settings to the end of the
// namespace.
func (k *kernel) stop() error {
	if k.pass == nil {
		return nil
	}
	err := k.pass.Close()
	k.pass = nil
	return err
}

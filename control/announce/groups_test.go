package announce

import (
	"bytes"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// filter is what a NIC takes: so many solicited-node groups of addresses that end in
// 07:xxxx, or all groups. The kernel's own addresses have others, and get them in its time.
type filter struct {
	Groups int
	All    bool
}

// filterOf asks the kernel.
func filterOf(t *testing.T, ns netns.NsHandle) (f filter) {
	t.Helper()
	i := index(t, ns)
	in(t, ns, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
		if err != nil {
			return err
		}
		f.Groups = bytes.Count(b, []byte("3333ff07"))
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		req.AddData(&nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Family: unix.AF_UNSPEC, Index: int32(i)}})
		answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return err
		}
		attrs, err := nl.ParseRouteAttr(answers[0][unix.SizeofIfInfomsg:])
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_ALLMULTI {
				f.All = nl.NativeEndian().Uint32(a.Value) > 0
			}
		}
		return err
	})
	return f
}

// TestManyGroups: a NIC that would need more groups than it has room for takes all, and
// goes back when there are few again. Addresses may share a group all the while.
func TestManyGroups(t *testing.T) {
	here, _, _ := pair(t)
	a := open(t, here)
	addr := func(net, host int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 4: byte(net), 13: 7, 14: byte(host >> 8), 15: byte(host)})
	}
	var first, second []netip.Addr
	for i := range 30000 {
		first, second = append(first, addr(1, i)), append(second, addr(2, i))
	}
	half := maxGroups / 2
	for _, step := range []struct {
		name string
		do   func([]netip.Addr) error
		what []netip.Addr
		want filter
	}{
		{"as many as may be", a.Join, first[:maxGroups], filter{maxGroups, false}},
		{"one more", a.Join, first[maxGroups : maxGroups+1], filter{0, true}},
		{"many more", a.Join, first, filter{0, true}},
		{"others of the same groups", a.Join, second, filter{0, true}},
		{"those alone", a.Leave, first, filter{0, true}},
		{"a half", a.Leave, second[half:], filter{0, true}},
		{"less", a.Leave, second[half-1:], filter{half - 1, false}},
		{"all again", a.Join, second, filter{0, true}},
		{"none", a.Leave, second, filter{0, false}},
	} {
		must(t, step.do(step.what))
		if d := cmp.Diff(step.want, filterOf(t, here)); d != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, d)
		}
	}
	must(t, a.Join(first))
	must(t, a.Close())
	if d := cmp.Diff(filter{}, filterOf(t, here)); d != "" {
		t.Errorf("after Close (-want +got):\n%s", d)
	}
}

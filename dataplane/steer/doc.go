// Package steer holds the XDP program that decides, before the kernel sees a
// frame, whether it is l4fwd's or the kernel's, and the maps and the link it
// lives by. The program is C (steer.c), compiled by bpf2go; the objects are
// committed, so that nobody needs clang to build l4fwd.
//
// What it takes, and redirects to the AF_XDP socket of the receive queue:
//
//   - everything to an address in [Rules].Addrs, VIPs and local addresses that
//     the host does not have: every protocol and port, fragments, ICMP; and
//     the ARP requests and neighbour solicitations that ask for one. Only a
//     DHCP server's answers (UDP from port 67 to 68, in one piece) pass, unless
//     a service or local range has that port: a host whose lease has run out
//     gets its address back by them;
//   - at an address that is the host's own, only what [Rules].Services and
//     [Rules].LocalRanges name by protocol and port, and the ICMP errors that
//     quote such a packet. Everything else, ssh first, is the kernel's;
//   - return traffic of DNAT: what comes from an endpoint in [Rules].Backends
//     and is meant for no address of the host, and ICMP errors that quote a
//     packet on its way to one.
//
// Everything else passes: other ARP and ND, multicast, broadcast, BGP, LLDP,
// what has more than one VLAN tag, and frames the program cannot make sense of.
// At an address of the host that includes transport headers it cannot see, behind
// IPsec, more than eight IPv6 extension headers or an unfinished routing header.
//
// The package must never know flows, schedulers or configuration files: a rule
// is an address, a protocol and a port.
//
// # No socket means drop
//
// A redirect that finds no socket in the queue's slot is dropped and counted,
// never passed: the kernel would answer it with a reset. So between Attach and
// SetSocket, and after a socket's death, traffic of l4fwd is lost but not
// broken. Call Update before Attach. A socket must be bound to the very NIC
// and queue of its slot, else the kernel drops silently (XDP_REDIRECT is what
// the program sees, and what is counted); the kernel empties the slot itself
// when the socket is closed.
//
// # Foreign MAC addresses
//
// XDP runs before the kernel compares the destination MAC, so in promiscuous
// mode the program sees frames for others. Unicast frames are taken only if
// they carry the NIC's own MAC, which the program is told by Attach and
// [NIC.SetMAC]: it must follow the NIC's address. Of broadcast and multicast
// frames only ARP requests and neighbour solicitations are taken. A VLAN device
// or macvlan with a MAC of its own on a data NIC is for the kernel alone.
//
// # VLAN tags
//
// One 802.1Q or 802.1ad tag in the frame is looked behind; the rules do not
// distinguish VLANs. A tag that the NIC has stripped is invisible here, so
// stripping has to be switched off on a NIC whose VLANs matter.
//
// # Fragments to an address of the host
//
// Only the first fragment of a datagram has ports. If it is taken, the
// datagram is remembered for 30 s and later fragments follow it; those that
// overtake their first fragment pass and are counted (pass_fragment). The
// kernel can never complete such a datagram, so it never answers it.
//
// # Fragments from a DNAT backend
//
// They are taken by address and protocol, the first too, so that none of a
// datagram goes to l4fwd while another passes: it routes on what has no flow.
//
// # Kernel
//
// A bpf_link for XDP needs Linux 5.9, rule sets of any size 5.10; the verifier reads the program in some
// 6,000 steps.
//
// # Updates
//
// All rules are in one hash map that is written once and put into force by one
// pointer in the kernel, for the programs of all NICs: a frame meets the rules
// before an Update or those after it, never a mixture. To change a hash map in
// place is no way to do it: the kernel uses a replaced element again at once,
// and a program that has just found it reads another rule (seen in a test).
//
// # Other programs
//
// The program is attached through a bpf_link, whose file descriptor lives in
// this process: however the process ends, the kernel detaches it. A NIC that
// has an XDP program already is refused ([ErrAttached]), never taken over.
package steer

// Package rs is the real server's side, in eBPF and so without a kernel module:
// TOA and UOA, which show clients' addresses to servers behind Full-NAT, by TCP and by
// UDP, and Decap, which takes packets out of a balancer's tunnels. `l4fwd rs` runs them.
// The programs are C (toa.c, uoa.c, decap.c), compiled by bpf2go; the objects are
// committed, so that nobody needs clang to build l4fwd.
//
// The package must never know what a balancer does beyond what it puts on the wire:
// flows, schedulers and configuration files are not here.
//
// # TOA
//
// A sock_ops program in a cgroup sees the segment that completes a handshake and
// reads its first option of a kind that is TOA: 8 bytes with an IPv4, 20 with an IPv6
// client. bpf_load_hdr_opt cannot do that, since it takes kinds 253 and 254 for
// experiments with a magic number behind the length (RFC 6994). The client is kept in
// the socket's storage, which ends with the socket, and from Linux 5.19 in that of the
// MPTCP socket that it may be a part of. Programs at getpeername, through
// which accept goes too, put it into the answer. SYN cookies and deferred accept are
// no exception.
//
// Only connections from [TOAOptions].From are believed. TOA from elsewhere is counted.
//
// Where the handshake bears none it may still come with the first data, as some
// balancers do it: until the first byte from the client has arrived, or the client has
// acknowledged one of the server's. Up to then a balancer puts its own option in front
// of whatever the client has made up, by the rule that DPVS and l4fwd have for it; a
// later one may be the client's. Servers have accepted by then: getpeername and package
// toa know the client, accept did not. Of kind 254 with the client's port 63881 the
// kernel believes that it is Fast Open's, so that it is missed when it is late. TOA on
// a SYN is not read, also if its data make a connection of it (RFC 7413).
//
// An IPv6 client of an IPv4 socket cannot be shown, the answer has no place for it:
// it stays as it was, and is counted. A socket for both families shows it.
//
// # UOA
//
// An XDP program reads UOA in datagrams from [UOAOptions].From: behind a header of IP
// protocol 248, which it takes out, since the kernel refuses that protocol, or as the
// first IPv4 option, which it leaves, since the kernel passes over it. It keeps the client
// in a map, by the datagram's addresses and ports. A datagram that is empty and whose
// option list ends behind UOA in four bytes of 0 is the balancer's own and is dropped.
//
// Programs at recvmsg put the client into what a server learns of where a datagram comes
// from, and note the balancer's flow as the way back; programs at sendmsg and connect put
// that flow in the client's place. So a server sees and answers the client, and the kernel
// the balancer. At getpeername connected sockets see the client too.
//
// Hazards: what one server cannot tell apart is shown under the balancer's address and
// port, and answered there, so that nothing goes astray:
//
//   - Two flows of one client, by two VIPs or one after the other: the latest is the
//     client's, the older one the balancer's.
//   - Two flows from one address and port of a balancer to two addresses of the host, for
//     a socket that is bound to none: it is not known which of the two a datagram in its
//     queue is of. Sockets that are bound to an address know.
//   - An IPv6 client by way of IPv4: the kernel lets no program make an IPv6 destination
//     an IPv4 one (udpv6_sendmsg), so it could not be answered.
//
// Package uoa can ask for the client of these, too, if that is switched on.
//
// A client stays known for [UOAOptions].Timeout after it was last needed. If a balancer
// then uses the port for another and all datagrams that would say so are lost, the next one
// is taken for the old client's.
//
// A reply to a client goes to the balancer also where the client has come to the server by
// another way, past the balancer, with the same port.
//
// # Decap
//
// An XDP program takes what is between the Ethernet header, one VLAN tag included, and
// the inner packet away, if
//
//   - the outer destination is an address of the host, as followed over netlink;
//   - the outer source is in [DecapOptions].From;
//   - the inner destination is a VIP;
//   - it is IP in IP (RFC 2003, 2473, 4213), GRE without any flag (RFC 2784), GUE of
//     variant 0 without flags, with whatever private data, or of variant 1, or IP in
//     UDP (FOU), at the ports given;
//   - the inner packet is as long as it says.
//
// All else passes as it came, counted if it was nearly that. An IPv6 destination option
// in front, which Linux puts there (RFC 2473 section 4.1.1), is passed over. Outer
// fragments cannot be put together here. Outer UDP checksums are not verified: what is
// inside has its own. Of the inner packet only the ECN field is ever changed (RFC 6040
// section 4.2), and a packet without ECN that met congestion in the tunnel is dropped,
// as that has it.
//
// # Life
//
// All is attached through bpf_links whose file descriptors live in this process: however
// it ends, the kernel detaches them. Nothing is pinned but the maps of clients that UOA
// is to keep, in a directory whose name has the version of their layout. List finds what is attached
// by asking the kernel, so it needs no file and cannot be out of date.
//
// Hazard: between the end of one TOA and the start of the next, connections are
// accepted under the balancer's address. To replace one without that, start the new one
// first: any number may be attached, and they agree.
//
// # Kernel
//
// Linux 5.10: for the TCP header in sock_ops, and to bind what a program is about to
// it. TOA and UOA need cgroup2. The verifier reads TOA's program in some 20,000 steps, UOA's
// and Decap's in less than 10,000.
package rs

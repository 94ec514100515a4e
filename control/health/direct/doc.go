// Package direct leads health checks of direct return to one backend each, by the way
// that packets of the service take: to the VIP, in the tunnel or with the MAC address
// that lead to that backend. So a check finds out whether the backend has the VIP,
// unwraps what it gets and answers past l4fwd.
//
// Any socket can be led, and the kernel keeps its TCP: a socket is marked, a rule of
// the kernel's routing sends what bears the mark to a TUN device, and from there a
// Carrier takes the packets, wraps them as a worker would and sends them by a packet
// socket on the data NIC. Which backend a packet is for its source says, protocol,
// address and port, which is noted before the socket is connected. Answers come to the
// host's own address as any other packet to it; l4fwd's XDP program passes them.
//
// Package direct must never know what a check is, nor services.
//
// # Hazards
//
// Where the VIP is an address of the host itself, the kernel keeps packets to it: the
// rules' first is for local addresses, always. No Path is for such a VIP.
//
// Answers come from the VIP by whatever NIC the backend sends them. With strict
// rp_filter the kernel drops them unless its route to the VIP is by that NIC.
//
// After a crash the rule stays behind. It does no harm, as its table is empty, and
// Repair or the next Open takes it away.
//
// Device, rule, table and mark have fixed names: there is one Carrier at a time in a
// network namespace.
package direct

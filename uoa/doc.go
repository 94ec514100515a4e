// Package uoa gives Go servers behind a Full-NAT balancer the address and port of UDP
// clients, which the balancer tells by UOA, where the system calls cannot. It asks the
// eBPF programs of `l4fwd rs uoa --getsockopt`, by two system calls for a datagram: no
// capability, no file, no map is needed, in containers too.
//
//	n, from, err := conn.ReadFromUDPAddrPort(b)
//	...
//	client, err := uoa.Client(conn, from)
//	...
//	_, err = conn.WriteToUDPAddrPort(answer, from) // not to client
//
// Most servers do not need it: under `l4fwd rs uoa` a datagram is received from the
// client's address by any program, and what is sent there goes to the client. The package
// knows more in two cases, in which datagrams come from the balancer's address:
//
//   - NAT64, an IPv6 client before an IPv4 server: the kernel would not let an answer to
//     an IPv6 address go out by IPv4;
//   - a client that has come to the server by another flow since.
//
// # Whose word it is
//
// The address is what a balancer said that `l4fwd rs uoa --from` trusts.
package uoa

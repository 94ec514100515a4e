// Package toa gives Go servers behind a Full-NAT balancer the client's address and
// port, which the balancer tells in the TCP option TOA. It asks the eBPF programs of
// `l4fwd rs toa --getsockopt`, one getsockopt(2) for a connection: no capability, no
// file, no map is needed, in containers too.
//
//	l, err := net.Listen("tcp", ":8080")
//	...
//	err = http.Serve(toa.NewListener(l), handler) // r.RemoteAddr is the client's
//
// Most servers do not need it: under `l4fwd rs toa` accept and getpeername return
// the client's address to any program, and so does net.Conn.RemoteAddr. The package
// knows more in two cases:
//
//   - NAT64 with a listener on IPv4 ("tcp4", or an IPv4 address): a struct sockaddr_in
//     has no place for an IPv6 client. A listener on "tcp" without an address shows
//     it without this package;
//   - a balancer that names the client not in the handshake but with the first data,
//     when the connection has been accepted already.
//
// # Whose word it is
//
// The address is what a balancer said that `l4fwd rs toa --from` trusts. A connection
// from elsewhere has its peer's own.
package toa

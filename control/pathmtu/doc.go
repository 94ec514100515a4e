// Package pathmtu hears what routers beyond the next hop say of packets in tunnels
// that are too big for them. Their ICMP errors go to the tunnel's source, an address
// of the host, and so to its kernel, which knows nothing of the tunnel; but a raw
// socket gets a copy.
//
// It must never know flows, or what becomes of what it tells.
//
// Hazard: such errors can be forged by anybody who knows the two ends of a tunnel. So
// only a packet to a configured end counts; what the error quotes of the packet within is
// told too, for the listener's owner to ask whether there is such a flow ([Quote]); where
// it quotes too little nothing below [LeastBlind] is believed. In any case nothing is
// below what every path carries ([Least4], [Least6]), nor what would shut out all that is
// IPv6 within ([End.Least]).
package pathmtu

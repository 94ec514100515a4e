// Package filter compiles tcpdump's filter expressions, pcap-filter(7), to classic BPF
// for Ethernet frames.
//
// It must never know where packets come from. [Compile] is all there is to call.
//
// # What is understood
//
// ip, ip6, arp, rarp, tcp, udp, sctp, icmp, icmp6, igmp and the like; host, net, port,
// portrange, proto with src and dst; ether host; vlan; broadcast and multicast; less,
// greater; comparisons of arithmetic over proto[offset:size] and len; and, or, not and
// parentheses. The result of a filter is what tcpdump's own is, which tests compare.
//
// Left out are names of hosts and services, other link layers, what is of the capture
// rather than the packet (inbound, ifname), and mpls, pppoe, geneve and gateway.
//
// # Hazards
//
// As in tcpdump, a primitive matches frames without a VLAN tag, until vlan has been
// said to its left: from then on all offsets are four bytes further. A primitive that
// looks beyond a frame's end refuses the frame, whatever the rest of the expression
// says. tcp[...] means IPv4 alone, tcp port both families, and and and or bind equally,
// from left to right.
package filter

package filter

// etherTypes are the protocols that an EtherType names.
var etherTypes = map[string]uint32{"ip": typeIPv4, "ip6": typeIPv6, "arp": typeARP, "rarp": typeRARP}

// transport is a protocol of IP; its name alone means it over one family, or over both.
type transport struct {
	number uint32
	family string
}

var transports = map[string]transport{
	"icmp": {1, "ip"}, "igmp": {2, "ip"}, "igrp": {9, "ip"}, "vrrp": {112, "ip"}, "carp": {112, "ip"},
	"tcp": {6, ""}, "udp": {17, ""}, "sctp": {132, ""}, "pim": {103, ""}, "ah": {51, ""}, "esp": {50, ""},
	"icmp6": {protoICMPv6, "ip6"},
}

// keywords are words that are no identifiers; protocols are others.
var keywords = map[string]bool{
	"and": true, "or": true, "not": true, "src": true, "dst": true, "host": true, "net": true, "port": true,
	"portrange": true, "proto": true, "less": true, "greater": true, "len": true, "vlan": true, "broadcast": true,
	"multicast": true, "mask": true, "ether": true, "link": true,
}

// constants are names of numbers: of offsets, flags and types (RFC 9293, 792, 4443).
var constants = map[string]uint32{
	"tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32,
	"tcp-ece": 64, "tcp-cwr": 128,

	"icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4,
	"icmp-redirect": 5, "icmp-echo": 8, "icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11,
	"icmp-paramprob": 12, "icmp-tstamp": 13, "icmp-tstampreply": 14, "icmp-ireq": 15, "icmp-ireqreply": 16,
	"icmp-maskreq": 17, "icmp-maskreply": 18,

	"icmp6type": 0, "icmp6code": 1, "icmp6-destinationunreach": 1, "icmp6-packettoobig": 2,
	"icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4, "icmp6-echo": 128, "icmp6-echoreply": 129,
	"icmp6-multicastlistenerquery": 130, "icmp6-multicastlistenerreportv1": 131, "icmp6-multicastlistenerdone": 132,
	"icmp6-routersolicit": 133, "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135,
	"icmp6-neighboradvert": 136, "icmp6-redirect": 137,
}

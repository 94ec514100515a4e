// Package announce tells a network that addresses are here: gratuitous ARP,
// unsolicited neighbour advertisements, and membership of the solicited-node
// groups, so that the questions of neighbours reach the NIC at all. It does
// all of that by a packet socket, since the kernel never owns these addresses.
//
// It must never know why an address is here or who answers for it: questions
// are answered in the data plane.
//
// Hazard: group memberships of a packet socket end with its last file
// descriptor, a crash included, which is wanted; but they only open the NIC's
// own filter. No MLD report is sent, so a switch that snoops MLD and has no
// other reason to forward the group here will not.
//
// Hazard: of more than 1,024 groups the NIC takes all multicast of its network, which the
// XDP program then passes on to the kernel.
//
// Hazard: a peer that never heard of an address learns nothing from an
// announcement (RFC 5944 section 4.6, RFC 4861 section 7.2.5); one that knows
// it under another MAC address moves over. That is the purpose.
package announce

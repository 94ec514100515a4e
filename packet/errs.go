package packet

// Err is why Parse refused a frame. The zero value is "not refused". It is a
// byte and not an error so that it costs nothing per packet and indexes a
// counter array.
type Err uint8

// The reasons of refusal. The order is of no meaning and may change; the
// strings are metric labels and may not.
const (
	ErrNone              Err = iota
	ErrTruncated             // frame ends before a header does, or before the length a header promises
	ErrFrameTooLong          // frame longer than 65,535 bytes, which Packet's offsets cannot address
	ErrEtherType             // neither IPv4, IPv6 nor ARP
	ErrStackedVLAN           // a second VLAN tag behind the first
	ErrIPVersion             // version field contradicts the EtherType
	ErrHeaderLength          // IPv4 header length below 20 bytes or above the total length
	ErrTotalLength           // IPv4 total length below 20 bytes
	ErrIPOptions             // malformed IPv4 options
	ErrSourceRoute           // loose or strict source route, or IPv6 routing header with segments left
	ErrExtHeaders            // IPv6 extension headers out of order, cut off, or more than 8
	ErrMapped                // IPv4-mapped IPv6 address on the wire
	ErrMartianSource         // source is multicast, broadcast, loopback or unspecified
	ErrMartianDest           // destination is unspecified
	ErrLand                  // source and destination, address and port, are the same
	ErrBadFragment           // fragment length not a multiple of 8, empty, or past 65,535 bytes
	ErrTinyFragment          // first fragment without the whole transport header and its options, or one that overlaps it (RFC 1858)
	ErrTCPOffset             // TCP data offset below 5 or beyond the datagram
	ErrUDPLength             // UDP length below 8 or beyond the datagram
	ErrUDPZeroChecksum       // UDP over IPv6 without checksum (RFC 8200 section 8.1)
	ErrARP                   // ARP other than Ethernet/IPv4 request or reply
	ErrND                    // neighbour solicitation that fails RFC 4861 section 7.1.1
	ErrICMPInner             // ICMP error whose embedded packet is malformed or too short to name a flow
	ErrICMPInnerFragment     // ICMP error about a later fragment, which carries no ports
	NumErrs                  // how many there are, for counter arrays
)

var errNames = [NumErrs]string{
	ErrNone:              "none",
	ErrTruncated:         "truncated",
	ErrFrameTooLong:      "frame_too_long",
	ErrEtherType:         "unknown_ethertype",
	ErrStackedVLAN:       "stacked_vlan",
	ErrIPVersion:         "bad_ip_version",
	ErrHeaderLength:      "bad_header_length",
	ErrTotalLength:       "bad_total_length",
	ErrIPOptions:         "bad_ip_options",
	ErrSourceRoute:       "source_route",
	ErrExtHeaders:        "ext_headers",
	ErrMapped:            "mapped_address",
	ErrMartianSource:     "martian_source",
	ErrMartianDest:       "martian_destination",
	ErrLand:              "land",
	ErrBadFragment:       "bad_fragment",
	ErrTinyFragment:      "tiny_fragment",
	ErrTCPOffset:         "bad_tcp_offset",
	ErrUDPLength:         "bad_udp_length",
	ErrUDPZeroChecksum:   "udp6_zero_checksum",
	ErrARP:               "bad_arp",
	ErrND:                "bad_nd",
	ErrICMPInner:         "bad_icmp_inner",
	ErrICMPInnerFragment: "icmp_inner_fragment",
}

// String is a snake_case word, fit for a metric label.
func (e Err) String() string {
	if e < NumErrs {
		return errNames[e]
	}
	return "unknown"
}

// Errs lists every reason, ErrNone first, in the order of their values.
func Errs() []Err {
	all := make([]Err, NumErrs)
	for i := range all {
		all[i] = Err(i)
	}
	return all
}

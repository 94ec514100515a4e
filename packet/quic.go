package packet

import "encoding/binary"

// Parts of a QUIC header: what RFC 8999 promises of every version, and the type, which
// is that of RFC 9000 section 17.2.
const (
	quicLong       = 0x80 // form bit
	quicVersionAt  = 1
	quicIDLenAt    = 5
	quicLongMin    = 7 // both lengths of connection IDs, and these empty
	quicIDMax      = 20
	quicTypeShift  = 4
	quicTypeMask   = 3
	quicInitial    = 0
	quicZeroRTT    = 1
	quicVersion2   = 0x6b3343cf // RFC 9369, where each type's number is one more
	quicV2TypeGoes = 1
)

// QUICServerID returns the connection ID by which a client's datagram, the payload of
// UDP, names its connection to the server: the destination ID of its first packet,
// unless that is an Initial or 0-RTT packet, whose ID the client may have made up. Of a
// short header the ID's length is the server's secret, so that what follows the ID, up
// to 20 bytes in all, is returned with it. The ID is part of datagram, and nil if there
// is none. Types are those of version 1 in all versions but 2; the fixed bit is not
// looked at, since it may be greased (RFC 9287).
func QUICServerID(datagram []byte) []byte {
	if len(datagram) < 2 {
		return nil
	}
	first := datagram[0]
	if first&quicLong == 0 {
		return datagram[1:min(len(datagram), 1+quicIDMax)]
	}
	if len(datagram) < quicLongMin {
		return nil
	}
	version := binary.BigEndian.Uint32(datagram[quicVersionAt:])
	kind := first >> quicTypeShift
	if version == quicVersion2 {
		kind -= quicV2TypeGoes
	}
	id, n := datagram[quicIDLenAt+1:], int(datagram[quicIDLenAt])
	// Version 0 is Version Negotiation, which is the server's to send.
	if kind &= quicTypeMask; version == 0 || kind == quicInitial || kind == quicZeroRTT || n == 0 || n > len(id) {
		return nil
	}
	return id[:n]
}

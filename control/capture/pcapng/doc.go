// Package pcapng writes and reads capture files in the format that Wireshark and tcpdump
// share, draft-ietf-opsawg-pcapng: as much of it as l4fwd writes, which is more than
// gopacket's writer knows, comments of single packets above all.
//
// It must never know where packets come from. A [Writer] writes blocks, and what has been
// written at any time is a whole file. [Read] tells what blocks there are and hands them
// on unchanged; it reads files of this machine's byte order, as a Writer makes them.
package pcapng

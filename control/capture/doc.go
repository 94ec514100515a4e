// Package capture turns what workers have captured (dataplane.Tap) into a pcapng file
// that comes bit by bit.
//
// It must never know the daemon or HTTP: it is given taps, names and an io.Writer. What a
// packet was received as and what it was sent as are two packets of the file with one
// packet id; the comment of each says what is known of it.
//
// Hazard: nobody waits for the writer. While it is stuck the workers' rings fill, and
// what finds no room is counted, by the statistics of the file's first interface.
package capture

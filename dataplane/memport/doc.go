// Package memport is a NIC queue made of plain memory: frames come from a list
// of captured packets and leave into a function. Replay and tests run the real
// pipeline over it.
//
// It must never know what a packet means. Like a NIC it copies: the list stays
// pristine, so that it can be fed again and again. Unlike one it is
// synchronous, needs no kick and cannot go down.
package memport

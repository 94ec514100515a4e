// Package frag is one worker's memory of the IP datagrams that arrive in
// fragments: which ports the first fragment of each carries, which bytes have
// come, and the frames of fragments that came before their first.
//
// It must never know workers, flows, services or rings: a frame is a number to
// it, and time is what the caller says it is.
//
// Hazards. A [Table] has one user. Frames it holds are its own until [Table.Next]
// or [Table.Loose] returns them; whoever counts frames must ask [Table.Holding].
// Contents are never compared, so a duplicate is known by its place alone.
// Everything is bounded when the table is made and nothing is allocated later.
package frag

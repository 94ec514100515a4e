// Package demo is `l4fwd demo`: it builds a small network in namespaces, runs
// the forwarder in it as `l4fwd run` would be run by hand, sends real HTTP and
// UDP through VIPs over both families, shows what happens and judges it. Each mode
// has a network that suits it (mode.go, network.go).
//
// It must never know how l4fwd works inside. It sees a binary that takes a
// configuration file, that binary's log, its stats file, and frames on the
// client's device and the real servers' cables; whatever it claims comes from there.
//
// Cleaning up. Everything made is noted on one stack and taken back in reverse
// order on every way out of Run, panics included. What a killed demo leaves,
// namespaces and a directory with the maker's pid in their names, is removed by
// the next start; the forwarder dies with its parent.
//
// The host. Nothing outside the namespaces is touched but /run/netns, a
// directory below os.TempDir and the forwarder's journal below /run/l4fwd.
// Namespaces and signals belong to the process: only one Run at a time.
//
// The terminal. The live table is redrawn by moving the cursor up, so while it
// stands nothing else may be printed; the forwarder's log is kept back and
// shown only if something fails.
package demo

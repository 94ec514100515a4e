// Package connlog writes down the flows that workers say have ended (dataplane.FlowLog):
// a line of JSON each, in a file that is bounded.
//
// It must never know the daemon, its configuration, or HTTP.
//
// # Nobody waits
//
// One goroutine reads the workers' rings and writes. While the disk keeps it waiting the
// rings fill, and what finds no room there is counted by the workers. What cannot be
// written, for the disk is full or the directory is gone, is counted here; it is tried
// again a second later.
//
// # Hazards
//
// Who rotates the file by renaming it need not tell: within a second what stands at the
// path is no longer the file that is written to, which is then begun anew. Lines of that
// second are still in the old one.
//
// A file system that hangs can hold the goroutine for ever: Close gives up on it.
package connlog

// Package hot asks the compiler what it had to put into the files that packets
// go through: bounds checks it could not prove away, and calls into the runtime
// that allocate, look something up in a map, or worse. Testdata/amd64.txt is the
// list of those that are there on purpose, or not yet gone; `make bench-check`
// fails for one that is not in it, `make bench-bounds` writes it anew.
//
// What the compiler proves depends on its version and on the architecture, so the
// list is for amd64, and another Go may need another list.
package hot

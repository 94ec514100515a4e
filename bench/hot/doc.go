// Package hot asks the compiler what it had to put into the code that packets go
// through: bounds checks it could not prove away, calls into the runtime that
// allocate, look something up in a map or wait, calls through an interface or a
// function's value, and calls that leave the packages packets go through.
// Testdata/amd64.txt is the list of those that are there on purpose, or not yet
// gone; `make bench-check` fails for one that is not in it, and for one in it that
// is gone, which would let another come unseen. `make bench-bounds` writes it anew.
//
// Every file of these packages counts, a new one, too, except what Cold names. What
// is cold may do what it likes, but a call of it from where packets go, or its text
// put there by the compiler, is in the list itself. So nothing gets out of sight by
// being put into a cold function.
//
// What the compiler proves depends on its version and on the architecture, so the
// list is for amd64, and another Go may need another list.
package hot

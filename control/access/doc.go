// Package access decides who may ask the daemon by network: tokens in files, names that a
// browser may have come by, and the certificate of what is served by TLS.
// How such files are read is there for those who ask others, too.
//
// What it reads, it can read again while requests come: Read says what is wrong with a
// file, or gives a function that puts what was read in force, so that a reload takes all
// of its files or none.
//
// # Hazards
//
// A token is worth as much as its file is well kept; the permissions are looked at and
// logged, no more. Tokens are compared by their digests, in constant time, and never
// logged, right or wrong.
//
// Who has to wait for wrong tokens is an estimate that is never too low; debts says for
// how many others it is too high.
//
// The address that wrong tokens are counted by is the one that the kernel saw: behind a
// proxy all clients have the proxy's.
package access

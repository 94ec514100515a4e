// Package docs is the documentation for users, and what of it the program shows
// itself: what to do about drops. Tests compare what is written with what the program
// says of itself: every key with its default, every drop reason, the layout of a flow,
// every folder, every example, every link.
//
// What is shown is run: a block of commands is marked "sh", or "console" if its lines
// have a prompt and what they print beneath, and with "server" behind that if it is for
// a real server; package main of cmd/l4fwd runs it on a network with the pages' names
// and addresses, as its docs_run_test.go says, beside the page's first configuration
// ("yaml") and its fragments of one ("yaml fragment"). Every block has a mark, "text" if
// it is nothing else.
//
// It must never import the program, but for its tests, which know no more of it than any
// user of its packages.
//
// Hazard: the tests find names, keys and numbers. Whether a sentence is true
// only a reader can tell; who changes behaviour reads the page about it.
package docs

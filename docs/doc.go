// Package docs is the documentation for users, and what of it the program shows
// itself: what to do about drops. Tests compare what is written with what the program
// says of itself: every key with its default, every drop reason, the layout of a flow,
// every folder, every example.
//
// It must never import the program, but for its tests, which know no more of it than any
// user of its packages.
//
// Hazard: the tests find names, keys and numbers. Whether a sentence is true
// only a reader can tell; who changes behaviour reads the page about it.
package docs

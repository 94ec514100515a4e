// Package docs is the documentation for users. It has no code but tests, which
// compare what is written with what the program says of itself: every key with
// its default, every drop reason, the layout of a flow, every example.
//
// Nothing imports it, and it must never know more of the program than any user
// of its packages.
//
// Hazard: the tests find names, keys and numbers. Whether a sentence is true
// only a reader can tell; who changes behaviour reads the page about it.
package docs

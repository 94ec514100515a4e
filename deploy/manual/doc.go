// Command manual makes a manual page's Markdown, for go-md2man, of docs/configuration.md
// on its standard input. Tables become lists: no terminal is as wide as they are.
//
// It must never know what the keys mean: the page in docs is the source, and the tests of
// docs hold that to the code.
//
// Hazard: go-md2man knows less Markdown than browsers do, and says nothing of what it does
// not know; so TestConfigurationPage looks at the page that comes out.
package main

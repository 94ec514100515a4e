// Package admin is the daemon's admin API, both ends of it: HTTP/1.1 with JSON over a
// unix socket, or over TLS for who has a token; the requests and answers as Go types, the
// servers and the client.
//
// It must never know the daemon's insides: it is given a Daemon, and what it sends are
// types of its own.
//
// # How a request is added
//
// Types with json tags in a file of their own; a method of Daemon; a line in New; a
// method of Client. What answers bit by bit (flows, captured packets) is a function given
// to HandleOutput, and is read by Stream.
//
// # Hazards
//
// Whoever can open the socket commands the daemon. Its mode is 0600 from the moment it
// has its name, and nothing else guards it: the directory must be its owner's, too. By
// network the token does, and before it the bounds on connections and their patience.
//
// A handler runs on a goroutine of its own, and any number of them at a time; a client
// that goes away ends the context of its request.
package admin

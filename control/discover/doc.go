// Package discover follows a prefix of keys in etcd, and makes one configuration of the
// file's services and those that it finds there.
//
// It knows etcd and documents, never the daemon: a Follower calls back with a Set, which
// is all documents at one revision, and a Merger puts a Set onto a configuration. What is
// done with the result is the caller's affair, who commits it when it is in force.
//
// # Keys
//
// PREFIX/services/NAME holds a service, PREFIX/services/NAME/backends/ID a backend of it,
// each one JSON object with the keys that the configuration file has there.
//
// # What is refused
//
// A document that is wrong by itself, or together with the file and documents that are
// older than it, is left out with an error that names its key; the last version of it that
// was in force stays instead, if there is one. The file always wins.
//
// # Hazards
//
// A session is with one member of etcd, and a connection that ends ends it: the next one lists all keys again. A
// watch that goes on where it was would miss what was before a backup was restored, whose
// revisions begin anew, and would wait for ever for a revision that a wiped etcd is far
// from.
//
// Who may write below the prefix says where clients' traffic goes. Commands of health
// checks (exec) are for the file alone.
package discover

// Package config turns l4fwd's YAML file into a Config: strict, validated,
// with every default filled in and never changed again.
//
// Load reads a file, Parse bytes. Both report all problems at once as Errors,
// each with file, line, column and field. The tables in schema.go are the one
// place that knows the keys: decoding, defaults shown, "did you mean", the
// effective configuration and Diff all come from them.
//
// The package imports nothing of l4fwd and must never know how a key is
// carried out, which interfaces exist or what the machine can do; whoever does
// reports it with Config.Problem, which finds the line.
//
// Hazards:
//
// A Config is shared between goroutines without a lock. Nobody writes to it or
// to its slices after Parse; a change is a new Config.
//
// YAML reads a plain [2001:db8::1]:80 as a list: IPv6 addresses with a port
// must be quoted. The syntax error says so.
//
// Anchors, aliases, merge keys, tags, directives and further documents are
// refused: what the file says is what stands there, and a small file cannot
// grow to a large one.
//
// The YAML parser recurses with the nesting of its input, so nesting and size
// are bounded before it runs.
package config

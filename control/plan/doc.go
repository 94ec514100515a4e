// Package plan turns a configuration into the orders of the parts that carry
// it out: services, backends and local addresses for the data plane, addresses
// and endpoints for the XDP program.
//
// It must never do anything: no I/O, no state. What the host owns is told to
// it, because that decides what may be taken (see Rules).
package plan

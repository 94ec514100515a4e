// Package metrics says in Prometheus' text format (version 0.0.4) what the forwarder
// does. It is given finished figures, a [Sample], and knows neither the daemon nor how
// workers are asked.
//
// # Two pages
//
// /metrics has what alerts and the dashboard of a fleet ask for: totals, one series for
// each worker, NIC, drop reason and service at most, some hundreds of lines.
// /metrics/detail has services' traffic and handshakes, and backend by worker: a million
// lines with 10,000 services of 10 backends. So the text is not made of objects that are
// collected first, as the usual library does; it is written as it is read from the
// sample.
//
// # Labels
//
// A label's values are of a closed set: service, backend, worker, NIC, queue, and names
// that the program has. Never anything a client chooses. Every series of a set is there
// from the start, at zero: rate() does not see an increase from nothing to one.
//
// # Cost
//
// A sample is kept for a second, and only one is taken at a time, so that whoever
// scrapes too often, or from ten places, costs what one does. Two pages are worked out at a
// time, and eight written: a page is made while it is read, and who is slow to read is in
// nobody's way.
//
// Hazard: a counter that is made of a NIC's begins at zero when the NIC comes back, as a
// process' counters do when it does. Prometheus takes both for a reset.
package metrics

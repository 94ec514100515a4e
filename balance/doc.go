// Package balance chooses the backend of a new flow.
//
// The control plane builds an immutable Set from a service's backends; all
// workers share it and call Pick once for each new flow. What a worker must
// remember between flows, the turn of a round robin or what it knows of others'
// flows, is a State, one for each worker and service. Workers tell each other how
// many flows the backends have by Loads; nothing is written by two of them.
//
// The package must never know what a packet's bytes mean, what a flow is or
// whether a backend is healthy: a backend that must not be chosen has weight 0,
// or is left out, in the next Set.
//
// Hazards:
//
// A State has a single writer, the worker that owns it. Where a Set looks it must be
// one that this Set's Start has made. Of its predecessor's it carries over the turn,
// so that a reload does not send every worker back to the first backend; a
// position beyond the new set's end is brought back into range by Pick.
//
// Hashed kinds agree between machines only if the seed, the identities, the
// weights and the sizes of the tables agree; the default size follows from the number
// of backends, drained ones included. An Identity must come from what the configuration says
// (address and port), never from an id that depends on the order of reloads.
// The seed is then no secret between those machines; who knows it can aim many
// clients at one backend, so it should not be a published constant where that
// matters.
//
// Pick with try > 0 continues the choice that try 0 made: it must follow it
// with the same Set, State and hash, before the State is used for another flow.
package balance

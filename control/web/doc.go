// Package web serves a status page to a browser: services, backends and what health
// checks found of them, rates of the last ten minutes, drops with what to do about them,
// workers and NICs.
//
// It must never know the daemon's insides: it is given a Source, and what it sends are
// the types of control/admin. Everything is read; with Options.Orders there are buttons,
// for who has a token, that order how a backend is treated.
//
// # Cost
//
// A snapshot is kept for a second, and only one is taken at a time, so that ten readers
// cost what one does. History is kept whether somebody looks or not: one request for
// Stats each five seconds. A page is sent at most 500 services, and the backends of those
// that its reader has opened.
//
// # Hazards
//
// Whoever reaches the port by a name of this host's can read it. Names come from the configuration and are
// nevertheless never taken for HTML: the script sets text only, and the policy that is
// sent with each answer lets a browser run that script and nothing else.
package web

// Package health finds out which backends answer. An Engine is given Targets,
// probes each of them time and again, and tells by OnChange which went up, which
// down, and why. Effective says what that means for the shares of a service's
// backends.
//
// It must never know configuration files, the dataplane or the admin API: who
// runs it turns those into Targets and Events into shares.
//
// # What is up
//
// A backend is up until something is known of it, so that a restart takes none
// away; its first result alone decides. From then on Rise successes in a row
// bring it up and Fall failures in a row take it down. While results speak
// against what it is taken for, it is checked every FastInterval.
//
// # Schedule
//
// An interval is from the beginning of a check to that of the next, and each is
// shortened by up to a tenth by chance; the first checks, also those after an
// interval became shorter, are spread over one interval. So 10,000 backends are not
// checked at the same moment, and one that dies is known to be down after Fall
// intervals and a timeout at most, unless more checks hang than may run at a time. Of
// commands these are few, see MaxExec; the others take turns.
//
// # Shortages
//
// A check that cannot be made, since this host has no descriptor, process, memory, port or
// source address for it, says nothing of the backend and changes nothing about it. It is
// tried again an interval later; Options.OnShortage is told.
//
// # Suspects
//
// A Watch is told what clients' connections meet with, and finds out which backends are
// suspect; the Engine checks those at once, see Suspect, or takes them down, see
// TakeDown. Backends may be Observed and nothing else.
//
// # Hazards
//
// A socket belongs to the network namespace of the thread that opens it. Checks
// run on goroutines of their own; who works in another namespace than the
// process's gives Options.Enter.
//
// TCP connections are ended by a reset (SO_LINGER 0): each would otherwise leave
// a port in TIME_WAIT for a minute, more than there are at 5,000 checks a second.
//
// UDP says nothing where nobody complains: a check without Expect that hears
// nothing is good, and lasts for the whole Timeout.
//
// A command of an exec check runs with the privileges of the process, so who
// writes the configuration is root.
package health

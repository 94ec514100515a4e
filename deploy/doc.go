// Package deploy is no code: what is installed with l4fwd (systemd unit, Debian
// package, container, examples, dashboard and alerts), and the tests that keep it true.
//
// It must never know how the program works; it is about files and their names.
//
// Hazard: the unit's restrictions hold for what l4fwd starts too, health checks of type
// exec above all.
package deploy

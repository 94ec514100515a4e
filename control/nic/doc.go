// Package nic reads what a NIC is (driver, queues, RSS, XDP program) and where the
// kernel works for it, and changes the few settings that stand in l4fwd's way, so
// that they can be put back: by Restore on exit, by Repair after a crash. Every
// change is written to a journal before it is made.
//
// It must never know rings, packets or the configuration file.
//
// Hazard: sysfs shows the devices of the network namespace it was mounted in,
// which need not be the one at work; a device of the same name there may be
// another. A sysfs of the right namespace is mounted without a place in the
// file system where the kernel permits it, and the interface index is compared
// before anything is written in any case.
//
// Hazard: a setting is put back only if it still is what we made it. Whoever
// changed it meanwhile meant it.
//
// Hazard: an interface that was deleted and made again has default settings
// and a new index; its journal is void, and is removed without touching it. One that
// was renamed has the index it had; a NIC that has left its namespace, as it does when
// that ends, may have another one too, and is known by its permanent MAC and bus address.
//
// Hazard: a namespace that is not found may only be hidden, from who may not look into
// all processes or is in a container and sees few. Its journal stays.
package nic

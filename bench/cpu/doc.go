// Package cpu holds the two instructions that measuring needs and Go has no
// name for: reading the time stamp counter, and asking for a cache line ahead.
//
// Hazard: the counter is the time only where it runs at one rate on all cores,
// whatever they do. A [Clock] looks for that in /proc/cpuinfo and goes by the
// monotonic clock where it is not said.
package cpu

// Package top draws what a running l4fwd does as a screen of text.
//
// It must never know where figures come from nor what a terminal is: it makes lines of
// two samples, and whoever called it shows them.
//
// Hazard: counters begin at 0 when the daemon is started again or a NIC returns. A rate
// that would be negative is 0.
package top

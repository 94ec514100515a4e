//go:build !amd64 || purego

package dataplane

import "github.com/l4fwd/l4fwd/conntrack"

// glances is for processors that have it in assembly, see plain_amd64.go.
func (*Worker) glances(_ [][conntrack.BucketLen]byte, from, _, _ int) int { return from }

// segments is for processors that have it in assembly, see plain_amd64.go.
func segments[S sender, F family](_ *Worker, _ []uint8, at int) int { return at }

//go:build !amd64 || purego

package dataplane

// glances is for processors that have it in assembly, see plain_amd64.go.
func (*Worker) glances(from, _, _ int) int { return from }

// segments is for processors that have it in assembly, see plain_amd64.go.
func segments[S sender, F family](_ *Worker, _ []uint8, at int) int { return at }

//go:build race

package dataplane

// raceDetector says that times mean nothing.
const raceDetector = true

//go:build !race

package control

// raceDetector says that times mean nothing.
const raceDetector = false

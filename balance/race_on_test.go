//go:build race

package balance

// raceDetector says that times mean nothing.
const raceDetector = true

//go:build race

package conntable

const raceDetector = true

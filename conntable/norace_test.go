//go:build !race

package conntable

const raceDetector = false

//go:build race

package director

// raceDetector says that the race detector is on, which allocates.
const raceDetector = true

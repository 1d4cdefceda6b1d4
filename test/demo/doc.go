// Package demo shows the product's one promise: every director works, and a
// client's TCP session outlives any number of their failures.
//
// It builds a cluster in the lab (three directors, two real servers running
// nginx and Redis, one client), keeps hundreds of flows of different habits
// open through the virtual IP, cuts the power of one director after another,
// lets each return empty, and judges every flow.
//
// What must hold: the verdict is about what the client saw, never about what
// the daemons say of themselves; their status is only read for the timeline.
package demo

// Package cli is what the command lines of both daemons have in common: the
// flags, "run", "status" and "version", and how an error ends the process.
//
// What must hold: an error is one line with the cure on standard error, and
// bad input ends with exit status 2 before anything was touched.
package cli

// Package ownership is what saru tells the syncd beside it: which part of the
// share it serves. With that a mirror knows whose kernel knows a connection
// best, and need not guess by who told of it last.
//
// What must hold: what is not known is said to be not known. That is so
// before saru told anything and when it has not for Stale, of addresses that are not
// of the share, of a connection whose bucket its entry does not tell, and of
// a bucket that came or went less than Settle ago, since two directors serve
// the established flows of a bucket that moves.
package ownership

// Package conntable is the mirror: every connection that any director of the
// cluster knows, with the version that decides between two tellings of it.
//
// What must hold:
//
//   - Newer state is never overwritten by older. Each record carries a Version
//     (a hybrid logical clock, ties broken by node); of two records for one
//     key the higher version stays, in whatever order and however often they
//     come. So merging is commutative, associative and idempotent.
//   - A deleted entry stays as a tombstone until the deadline it had, so that a
//     peer that missed the deletion cannot bring it back; a record that is past
//     its own deadline is refused.
//   - The table is bounded: at its limit new keys are refused and counted,
//     known ones go on being updated.
//   - Entries leave at their deadline, found by a timer wheel and never by
//     looking at all of them; reading the whole table holds one shard's lock
//     for a few entries at a time.
//
// Deadlines are kept on the local monotonic clock and travel as time that
// remains, so they are right whatever the wall clocks of the directors say.
package conntable

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
//     its own deadline is refused. Whoever deletes gives the tombstone what
//     remains as its Timeout too.
//   - The table is bounded. At its limit a new key takes the place of the entry
//     of its shard that would die first, if it would live longer itself; else
//     it is refused. Both are counted. Known keys go on being updated. So
//     tombstones and closing connections go first, then what was silent
//     longest, and full tables keep much the same.
//   - Entries leave at their deadline, found by a timer wheel and never by
//     looking at all of them; no lock is held for more than a few hundred
//     entries, whoever reads or expires how much.
//   - Nothing allocates but the growth of the table and of what is rare.
//
// Deadlines are kept on the local monotonic clock and travel as time that
// remains, so they are right whatever the wall clocks of the directors say.
//
// # Memory
//
// An IPv4 connection takes 48 bytes for its entry and 8 for its two buckets,
// whether it lives or is a tombstone; an IPv6 client 16 more. Neither holds a
// pointer. TestMemory measures what is resident all the while a table grows:
// 58 bytes at most for each of a million. Entries and buckets lie in segments
// that never move (arena.go), and the hash index grows by a bucket at a time
// (index.go), so there is no moment at which a grown copy lives beside the old.
// What few values stand for in many connections (services, real servers, states
// with their flags and timeouts) is held once by each shard and counted
// (intern.go). What few connections have at all lies beside (side.go). Memory
// once taken is kept for the next wave.
//
//	Batch   batch.go    many records at a time
//	shard   table.go    16 of them, by the key's slice; a lock each; who goes
//	                    when a table is full, and at its time: room.go
//	 ├ index       index.go    key hash -> chain of entries
//	 ├ entries     arena.go    id -> entry (entry.go)
//	 ├ services, dests, modes  id -> value (intern.go)
//	 ├ clients, extras         IPv6, sequence numbers, engine data (side.go)
//	 ├ wheel       wheel.go    second -> entries to look at
//	 └ calendar    digest.go   digests of 64 slices, and their changes to come
//
// # Digests at a horizon
//
// Two tables that change ten thousand times a second are never equal now. They
// are compared as of a horizon H some seconds ago, by when all news has
// arrived. Three things make that comparison exact under load, where each
// alone would make it fail all the time:
//
//   - A slice's digest at H is of the newest telling up to H of each key, not of
//     the entries whose present version is up to H. What came since, on one of
//     the two and not yet on the other, is not looked at.
//   - A telling leaves the digest at a tick that follows from its version and
//     timeout, somewhat before the deadline: the quantised deadline. When each
//     node's wheel really drops the entry does not matter, so expiry at the
//     rate of thousands a second makes no difference either. A refresh that was
//     lost is seen, since each that is told has a version of its own; one that
//     is not worth telling gets none (Hear, Extend).
//   - A state that was overtaken before the peers were told is not in our
//     digest at any horizon (keepVersion in table.go).
//
// To have the digests of the past without keeping the past, digests are
// exclusive ors, and horizons fall on ticks of about a second of the versions'
// clock. The sums stand at some tick F. A telling that comes in tick e and
// leaves in tick l is exclusive-ored into what the slice's calendar has for e
// and for l; one that takes the place of an older one moves that one's leaving
// to e. When a horizon is asked for, F moves up to it and takes in what the
// calendar has until there. So a change costs four exclusive ors at most, and
// a horizon a few thousand in all, whatever the table's size; a late arrival
// from before F goes into the sums at once, as repair must. The calendar is a
// timing wheel of seven levels, so deadlines of weeks cost no more than those
// of seconds, 32 KB for each level in use and shard.
//
// A slice that differs at one horizon may have news under way longer than
// others; one that differs at three in a row is to be repaired.
package conntable

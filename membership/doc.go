// Package membership decides who may accept which bucket: the protocol of
// claims and grants, without sockets, clocks or a kernel.
//
// Directors claim buckets in their heartbeats; every voter promises a bucket
// to one director at a time; a director opens a bucket only when those it must
// hear have granted it for the same heartbeat; the kernel lets the opening
// lapse by itself one lease after that heartbeat was armed. Master, epochs and
// assignments only steer who claims what.
//
// What must hold: no error or race in master, epochs or assignments opens a
// bucket twice; nothing is remembered across a restart, because promises are
// shorter than a restarted voter's silence; Core never claims less than the
// kernel may have open; Core acts on an event completely before the next one.
//
// A [Core] takes events (Tick, Receive, Applied, ...) with the caller's
// monotonic time and returns ordered actions: arm, send, confirm, apply. Arm,
// send and confirm are done in order and at once; apply may take any time and
// is answered with Applied.
//
// # The wire
//
// All messages are sealed (internal/seal, purpose "heartbeat"). Numbers are
// big-endian. A receiver ignores bytes after the last field it knows; a
// message of another version tells it only that its sender is there.
//
// Every message begins with
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|     type      |  version = 1  |            share id           |
//	+---------------+---------------+-------------------------------+
//	|                  cluster (SHA-256 of its name)                |
//	+---------------------------------------------------------------+
//	|                sender (8 bytes, SHA-256 of its name)          |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                sender's incarnation (8 bytes, random)         |
//	|                                                               |
//	+---------------------------------------------------------------+
//
// An epoch is 16 bytes: term (4), counter (4), incarnation of its issuer (8).
// A set is a count of 8-byte words (1), then per set that many words as bytes; bucket
// b is bit b%8 of byte b/8.
//
// Heartbeat (type 1):
//
//	+---------------------------------------------------------------+
//	|                        n (8 bytes)                            |
//	+---------------------------------------------------------------+
//	|                   lease in microseconds                       |
//	+---------------------------------------------------------------+
//	|                   shape (8 bytes)                             |
//	+---------------------------------------------------------------+
//	|                   epoch (16 bytes)                            |
//	+---------------------------------------------------------------+
//	|                   assignment's hash (8 bytes)                 |
//	+---------------+---------------+-------------------------------+
//	|     state     |     flags     |            weight             |
//	+---------------+---------------+-------------------------------+
//	| words, then the sets open, want and rest                      |
//	+---------------------------------------------------------------+
//	| length of the name (1), the name                              |
//	+---------------------------------------------------------------+
//	| count of heard peers (1), per peer: node (8), incarnation (8),|
//	| newest n heard (8)                                            |
//	+---------------------------------------------------------------+
//
// claims are open and want together. Flag 1 says that the sender leaves: it
// has closed everything and sends nothing more.
//
// Ack (type 2): to (8), to's incarnation (8), n (8), epoch (16), the
// assignment's hash (8), words (1), the sets granted and refused. A bucket in
// neither is a voter's silence.
//
// Assign (type 3): epoch (16), hash (8), shape (8), buckets (2), count of
// members (1), per member: node (8), incarnation (8), term and counter at which
// it was first listed (4, 4), weight (2); then the owners' indices, two buckets
// a byte, the lower bucket in the upper half. The hash is the first 8 bytes of
// the SHA-256 of everything else from the epoch on.
//
// Fetch (type 4): the epoch (16) that the sender wants to be told.
package membership

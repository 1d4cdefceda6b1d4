// Package peer is the protocol that mirrors connections between directors:
// every node sends its own news to all, everybody repairs what it missed.
//
// What must hold:
//
//   - Nothing is acted on that did not open with a key of the cluster.
//   - A datagram of records that was lost is noticed, by the next one or by a
//     heartbeat at most 250 ms later, and asked for again; what the sender no
//     longer keeps is pulled over TCP. Nobody has to ask for that.
//   - A joiner knows when it holds what all reachable peers held at the moment
//     of joining.
//   - Every queue, ring and map here has a limit, and each way a datagram can
//     be discarded has a counter with a name (Drop).
//
// # Datagrams
//
// UDP, to the group or to each configured peer, from the port that the sender
// listens on. Each is the plaintext of one sealed datagram of internal/seal.
// Numbers are big-endian. All begin with
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|  version = 1  |  type         |  zero                         |
//	+---------------+---------------+-------------------------------+
//	|                       node (NodeID of the sender)             |
//	+---------------------------------------------------------------+
//
// A datagram of another version, or of an unknown type, is dropped and
// counted. Bytes after the last known field are ignored: room for additions
// that old nodes may miss.
//
// Type 1, records. sequence counts this type of datagram alone, from 1 in each
// life of a sender, and is what gaps are seen by:
//
//	+---------------------------------------------------------------+
//	|                       sequence (64)                           |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       clock (64): the sender's, as versions   |
//	|                       count it, when this was first sent      |
//	+---------------------------------------------------------------+
//	|                       age (32): ms since then (resent: > 0)   |
//	+---------------------------------------------------------------+
//	|                       groups ...                              |
//
// A group is what several connections have in common, then what is each one's
// own. Groups are whole in themselves: no datagram needs another to be read.
//
//	+---------------+---------------+---------------+---------------+
//	|  count (1..)  |  what         |  protocol     |  state        |
//	+---------------+---------------+---------------+---------------+
//	|  flags (16)                   |  virtual port                 |
//	+-------------------------------+-------------------------------+
//	|  real server's port           |  virtual address (4 or 16 B)  |
//	+-------------------------------+-------------------------------+
//	|  real server's address (4 or 16 B)  |  timeout, s (uvarint)   |
//	+---------------------------------------------------------------+
//	|  fwmark (uvarint), if what has bit 1                          |
//	+---------------------------------------------------------------+
//	then count times:
//	+---------------------------------------------------------------+
//	|  client address (4 or 16 B)                                   |
//	+-------------------------------+-------------------------------+
//	|  client port                  |  clock - version (uvarint)    |
//	+-------------------------------+-------------------------------+
//	|  node (32), if bit 4: whose version it is, else the sender's  |
//	+---------------------------------------------------------------+
//	|  remaining, ms (uvarint), if bit 5, else timeout - age        |
//	+---------------------------------------------------------------+
//	|  extras, if bit 3: which (8), then per bit                    |
//	|    0: six 32-bit numbers of struct ip_vs_seq, in then out     |
//	|    1: length (8), engine's name; length (8), engine's data    |
//	+---------------------------------------------------------------+
//
//	what  bit 0  addresses are IPv6      bit 3  records have extras
//	      bit 1  there is a fwmark       bit 4  records name their node
//	      bit 2  connections are gone    bit 5  records tell what remains
//
// A set bit that is not known makes the rest of the datagram unreadable: it
// is dropped and counted. flags are the kernel's, masked with what its backup
// keeps, the template bit among them. A connection as it is usually told, IPv4
// in a group of many, takes 8 bytes.
//
// Type 2, heartbeat, every 250 ms and 20 ms after records:
//
//	+---------------------------------------------------------------+
//	|                       incarnation (64): the sender's clock    |
//	|                       when it started                         |
//	+---------------------------------------------------------------+
//	|                       highest sequence sent (64)              |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       lowest sequence that can be resent (64) |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       clock (64)                              |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       horizon of digest (64)                  |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       digest of the table up to horizon (64)  |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       connections (32)                        |
//	+-------------------------------+-------------------------------+
//	|  flags: 1 synced, 2 answer    |  TCP port                     |
//	+---------------+---------------+-------------------------------+
//	|  name length  |  name ...                                     |
//	+---------------+-----------------------------------------------+
//
// "answer" asks all to send a heartbeat now; a joiner sets it, and so does who
// wants to catch up with a peer: the peer's heartbeat with a clock above the one
// at which it was asked tells the highest sequence that must have come. A peer is
// known by its heartbeat: records that come before it are used, but gaps are only
// seen from then on, since a new peer's table is pulled anyway.
//
// The digest is of the table as it was told up to the horizon, with deadlines
// rounded to ticks of 2^20 us (package conntable defines it). Two nodes compare
// digests of one horizon only.
//
// Type 3, missing (NACK), to the one sender, again every 40 ms and then less
// often while it lasts:
//
//	+---------------------------------------------------------------+
//	|                       boot (64): whose sequence (seal's boot) |
//	|                                                               |
//	+-------------------------------+-------------------------------+
//	|  ranges (1..64)               |  zero                         |
//	+-------------------------------+-------------------------------+
//	then per range: first (64), how many (32)
//
// It answers with those datagrams of records that it keeps, to the asker
// alone, with their age.
//
// # Bulk
//
// TCP on the same port, sealed by seal.Stream. The puller's first frame is
//
//	| version = 1 | type 16 | zero (16) | node (32) | name length (8) | name |
//
// and the answer is: one frame BEGIN (type 17: highest sequence (64), clock
// (64), connections (32)), any number of frames RECORDS (type 18: clock (64),
// groups as above), one frame END (type 19: records sent (64)), all with the
// 8-byte head. All that sequence numbers up to BEGIN's told is in the records
// that follow, or something newer.
//
// A puller that found its table's digest to differ from the peer's at two
// horizons in a row begins with
//
//	| version = 1 | type 20 | zero (16) | node (32) | name length (8) | name |
//	| horizon (64) | its digests of the 1,024 slices, 64 bits each (8,192 bytes) |
//
// instead, and gets the records of those slices in which the peer's digests of
// that horizon differ, between the same BEGIN and END. A peer that has no digests
// of that horizon any more ends the stream.
package peer

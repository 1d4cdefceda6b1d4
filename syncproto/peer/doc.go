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
// Numbers are big-endian; a uvarint has 7 bits in each byte, the lowest first,
// in its shortest form. All begin with
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|  version      |  type         |  zero, or age (records)       |
//	+---------------+---------------+-------------------------------+
//	|                       node (NodeID of the sender)             |
//	+---------------------------------------------------------------+
//
// The version is the lowest that can read the message: 2 for records, in
// datagrams and in streams, and for the requests of types 16 and 20; 1 for all
// else. A heartbeat says which version its sender understands. The newest is
// spoken that all who are heard understand, 1 at least, so a cluster is upgraded
// one node after another. A
// message of a later version, or of an unknown type, is dropped and counted.
// Bytes after the last known field are ignored: room for additions that old
// nodes may miss.
//
// Type 1, records. sequence counts this type of datagram alone, from 1 in each
// life of a sender, and is what gaps are seen by. age, in the head, is for how
// long the sender has had it, in units of 16 ms, rounded up; 0 when it is first
// sent:
//
//	+---------------+---------------+-------------------------------+
//	|  version = 2  |  type = 1     |  age (16)                     |
//	+---------------+---------------+-------------------------------+
//	|                       node                                    |
//	+---------------------------------------------------------------+
//	|                       clock (64): the version that most of    |
//	|                       the records have                        |
//	+---------------------------------------------------------------+
//	|  sequence (uvarint)  |  groups ...                            |
//	+---------------------------------------------------------------+
//
// A group is what several connections have in common, then what is each one's
// own. Of what they have in common it says what differs from the group before
// it in the same datagram; no datagram needs another to be read.
//
//	+---------------+
//	|  changes      |  what is said of:
//	+---------------+
//	|M K P D D p V V|  V virtual address  p virtual port  D real server's address
//	+---------------+  P its port  K kind  M many
//	|  count (8)    |  if M: 1 to 255; else there is one record
//	+---------------+---------------+---------------+---------------+
//	|  what         |  protocol     |  state        |  flags (16) ..|
//	+---------------+---------------+---------------+---------------+  if K
//	|.. flags       |  timeout, s (uvarint)  |  fwmark (uvarint), if what has bit 1
//	+---------------+---------------+-------------------------------+
//	|  end of the virtual address   |  virtual port, if p           |
//	+-------------------------------+-------------------------------+
//	|  end of the real server's     |  its port, if P               |
//	+-------------------------------+-------------------------------+
//	then count times:
//	+---------------------------------------------------------------+
//	|  client address (4 or 16 B)                                   |
//	+-------------------------------+-------------------------------+
//	|  client port                  |
//	+-------------------------------+-------------------------------+
//	|  version - clock (uvarint of 2n, or of -2n-1 below 0), if bit 6; else 0 |
//	+---------------------------------------------------------------+
//	|  node (32), if bit 4: whose version it is, else the sender's  |
//	+---------------------------------------------------------------+
//	|  remaining, ms (uvarint), if bit 5, else timeout - age        |
//	+---------------------------------------------------------------+
//	|  extras, if bit 3: which (8), then per bit                    |
//	|    0: six 32-bit numbers of struct ip_vs_seq, in then out     |
//	|    1: length (8), engine's name; length (8), engine's data    |
//	|    2: real server's address, of the other family (4 or 16 B)  |
//	+---------------------------------------------------------------+
//
//	what  bit 0  addresses are IPv6      bit 4  records name their node
//	      bit 1  there is a fwmark       bit 5  records tell what remains
//	      bit 2  connections are gone    bit 6  records tell their versions
//	      bit 3  records have extras
//
// V and D say how much of the address follows: 0 nothing, it is the one before;
// 1 its last byte, 2 its last two bytes, 3 all of it. What is not said is as in
// the group before. A real server's port that is not said is its service's port
// if that was so in the group before, else it is the port before. The first
// group says its kind; before it, and before a group of another address family,
// addresses and ports count as zero. A set bit that is not known makes the rest
// of the datagram unreadable: it is dropped and counted. flags are the kernel's,
// masked with what its backup keeps, the template bit among them.
//
// So a connection as it is usually told, IPv4 and news, takes 6 bytes. With 28
// bytes or less of heads and 40 of the seal, and the groups of ten services of
// four real servers each, each takes 9.7 bytes of UDP payload in flushes of 50
// and 6.4 in full datagrams. News that is told together shares one version
// (conntable.Clock.Shared): otherwise each would take two bytes more.
//
// In version 1 the head of type 1 has zero for age, and behind node sequence
// (64), clock (64, the highest version) and age (32, in ms). Its groups are whole,
//
//	| count (8) | what (8) | protocol (8) | state (8) | flags (16) | virtual port (16) | real server's port (16) |
//	| virtual address | real server's address | timeout (uvarint) | fwmark (uvarint), if bit 1 |
//
// what has no bit 6, and each record tells clock - version (uvarint) behind the
// client's port.
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
//	+---------------+---------------+---------------+---------------+
//	|  understands  |  streams      |  answers (..32)| paths (..64) |
//	+---------------+---------------+---------------+---------------+
//	|                       records told in the last second (32)    |
//	+---------------------------------------------------------------+
//	|                       question (64), 0 for none               |
//	|                                                               |
//	+---------------------------------------------------------------+
//	then per answer: node (32), its question (64)
//	then per path:   node (32), size (16), flags (8): 1 alone, zero (8)
//	then zeros, if it is a probe
//
// What follows the name is missing in version 1. understands is the highest
// version that the sender understands, streams how many it serves now.
//
// "answer" asks all to send a heartbeat now; a joiner sets it, and so does who
// asks a question: a heartbeat that answers it was made after the question came,
// so its highest sequence covers all that was sent before, and it is made no
// sooner than all is delivered that the asker had sent when it asked first. Who
// wants to catch up with a peer, or it to catch up, asks until it is answered.
//
// A path is what the sender says of the way from node to it: the largest UDP
// payload that came in the last 10 to 20 s, and "alone" if for 1.5 s none came
// through the group. Who reads that of itself sends to the other alone too. A
// node that is not heard at all is sent heartbeats alone, so two nodes whose
// switch forgot their group find each other again. Once a second a heartbeat is
// a probe, as large as the sender's link takes, or, if not all say that they
// get that, 548, 1,232 and 1,472 bytes (over IPv6 1,452) as well. Datagrams of
// records are as large as all get them, at most 9,000 bytes, and 1,472 (1,452)
// until that is known. Nothing is fragmented: IP's don't-fragment bit is set. What
// the system refuses to send is not tried for records again for 30 s.
//
// A peer is
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
// Type 4, services, every 5 s: the digest of what the sender balances.
//
//	+---------------------------------------------------------------+
//	|                       digest (64), not 0                      |
//	|                                                               |
//	+---------------------------------------------------------------+
//
// It is the first 8 bytes of SHA-256 over the items of its list, in order of
// their names. An item is
//
//	| name length (8) | name | length (8) | value |
//
// in printable ASCII: a service or one of its real servers, and how it is
// configured, in ipvsadm's words. Who differs from a peer for 8 s gets its list by
// a stream that begins with
//
//	| version | type 22 | zero (16) | node (32) | name length (8) | name |
//
// and is answered by frames of type 23, items behind the 8-byte head, and a frame
// of type 19 with nothing behind its head. At most 16,384 items are told. What
// differs is shown to people; nothing else follows from it.
//
// Type 5, ask, to all, and type 6, receipt, to who asked, are
//
//	| head | boot (64) of who asks | sequence (64) of datagrams of records |
//
// A receipt says that all datagrams of records of that life up to sequence are
// delivered and in its sender's kernel (receipt.go).
//
// # Bulk
//
// TCP on the same port, sealed by seal.Stream. Who has not shown a key after some
// seconds is cut off, and takes no place of a puller's. The puller's first frame is
//
//	| version | type 16 | zero (16) | node (32) | name length (8) | name |
//
// with version = 2 if the peer understands that, and the answer is: one frame
// BEGIN (type 17: highest sequence (64), clock (64), connections (32)), any
// number of frames RECORDS (type 18, in the request's version: clock (64), groups
// as above), one frame END (type 19: records sent (64)), all with the
// 8-byte head. All that sequence numbers up to BEGIN's told is in the records
// that follow, or something newer.
//
// RECORDS frames begin with what lasts (timeouts of a minute and more) and was
// told of in the last minute, go on with what lasts, and end with the rest. In
// version 2 a frame MARK (type 21: 14 bytes) says now and then how far that has
// come; a puller whose stream broke asks again, in the same life of the peer,
// with the last mark behind its name, and gets what comes behind it.
//
// A puller that found its table's digest to differ from the peer's at three
// horizons in a row begins with
//
//	| version | type 20 | zero (16) | node (32) | name length (8) | name |
//	| horizon (64) | its digests of the 1,024 slices, 64 bits each (8,192 bytes) |
//
// instead, and gets the records of those slices in which the peer's digests of
// that horizon differ, between the same BEGIN and END. A peer that has no digests
// of that horizon any more ends the stream.
//
// # Joining
//
// A node that starts listens for 100 ms, and pulls from that of the peers that
// say that they are synced which serves the fewest streams, and then told the
// fewest records in the last second; if nobody says so, from all. Meanwhile it
// takes part in everything else. It has joined when that is done and 2 s have
// passed since its start. It is synced, and says so, when its kernel has taken
// all of it and its digest has been found equal to that of each peer that is
// synced, at the newest horizon, or what differed was fetched.
package peer

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
// monotonic time and returns ordered actions: arm, send, confirm, apply,
// barrier. Arm, send and confirm are done in order and at once; apply and
// barrier may take any time and are answered with Applied and BarrierDone.
// Tick and Wake are called after all sockets were drained. In steady state no
// event allocates.
//
// Besides, [Core.Events] tells people what happened: states, masters, which
// buckets an assignment moves from whom to whom and why, what this node took
// and let go of. Nothing depends on anybody listening.
//
// # Who must grant
//
// Without voters (quorum lan): to keep its buckets a director needs the answer
// of every director that it hears, but of those that have fallen silent, and a
// refusal of none; to gain one it needs the grant of everyone whom it hears
// and whom those hear. With voters (quorum majority): the grants of more than
// half of them, directors or witnesses, for both. Two nodes whose lists differ
// in one voter get on, since any two such majorities share a voter; so change
// one at a time, and everywhere before the next.
//
// Under lan, and only there, two sides of a healed split may both have a
// bucket open until the first heartbeat has passed between these two, each way
// and with no others between. Then the side with more members keeps it, or the
// senior, or the lower name.
//
// # Slow machines
//
// Under lan everyone waits for everyone's answer, so one who is slow could hold
// up all. Safety needs the answer of those who could take a bucket, and nothing
// else; so whoever is not fast enough must not be among them. A newcomer is
// silent, and so nobody's voter, until all its ticks were on time for L_w
// (while somebody serves; else nobody is held up). A director that had to fence
// itself says that it steps aside, and is a newcomer; each time that this comes
// soon after the last it must have been on time for twice as long, at most 30
// s. A peer that stalls is not waited for after two ticks, and a node that
// stalls for less than its lease keeps its share: it renews when it is back,
// within the same promises, or closes one interval before the lease ends. What
// a late tick is late by does not count as listening, but it does not begin the
// count anew either, so nodes that are all slow settle too.
//
// # Freshness
//
// The windows that refuse replayed messages are forgotten with a restart, so a
// node counts only once a message of it has named this node's incarnation,
// which was unknown when anything was recorded. A Probe asks for such a
// message; one who answers also vouches for those whom it hears. Until then it
// is a presence, which can keep a newcomer out and nothing else; and if others
// show that this node's asking arrives, not even that.
//
// # Hand-over
//
// A planned move makes before it breaks. The taker catches up with the giver's
// connections (Barrier), takes the bucket's established flows beside it
// (rest), and says so; the giver then closes the bucket for new flows and keeps
// rest for some seconds; the taker claims what is free now. Who dies on the
// way is treated as anybody who dies. Without a taker nothing is released.
//
// Presence is not membership: with another share configuration, with voters
// that differ by more than one, with another machine of the same name about,
// a newcomer stays out and a holder takes nothing more from such a holder.
//
// # The wire
//
// All messages are sealed (internal/seal, purpose "heartbeat"). Numbers are
// big-endian. A version differs from the one before only in fields after its
// last. A receiver ignores bytes after the last field it knows, and so
// understands the next version as well as its own; a message of any other
// tells it only that its sender is there. Versions 1 and 2 are not understood.
//
// Every message begins with
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|     type      |  version = 3  |            share id           |
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
// Sets of buckets go by the number of the share's buckets in words of 64 (1 byte,
// 1 to 64), once before the sets of a message. A set is one byte that says how,
// then, by the lower seven bits of it,
//
//   - 0 to 12: how many buckets it has (2 bytes), then the gap before each of them
//     as a Rice code with that parameter k: the gap shifted right by k as so many
//     ones and a zero, then its low k bits; high bits first, the last byte filled
//     up with zeros;
//   - 15: a bit per bucket; bucket b is bit b%8 of byte b/8.
//
// If the highest bit is set, what follows is not the set but how it differs from
// the first set of the message. Of 4,096 buckets anywhere, 16 take 24 bytes, 256
// take 180, and none more than 513.
//
// Heartbeat (type 1):
//
//	+---------------------------------------------------------------+
//	|                        n (8 bytes)                            |
//	+---------------------------------------------------------------+
//	|                   lease in microseconds                       |
//	+---------------------------------------------------------------+
//	|                   shape (8 bytes), 0: unknown to a witness    |
//	+---------------------------------------------------------------+
//	|                   host (8 bytes)                              |
//	+---------------------------------------------------------------+
//	|                   epoch (16 bytes)                            |
//	+---------------------------------------------------------------+
//	|                   assignment's hash (8 bytes)                 |
//	+---------------------------------------------------------------+
//	|       first listed at term (4 bytes), counter (4 bytes)       |
//	+---------------+---------------+-------------------------------+
//	|     state     |     seats     |             flags             |
//	+---------------+---------------+---------------+---------------+
//	|            weight             |     reach     |     zero      |
//	+-------------------------------+---------------+---------------+
//	|                            freeze                             |
//	+---------------------------------------------------------------+
//	| words (1), then the sets open, want and rest                  |
//	+---------------------------------------------------------------+
//	| length of the name (1), the name                              |
//	+---------------------------------------------------------------+
//	| count of voters (1), per voter: node (8)                      |
//	+---------------------------------------------------------------+
//	| count of heard peers (1), per peer: node (8), incarnation (8),|
//	| newest n heard (8)                                            |
//	+---------------------------------------------------------------+
//
// claims are open and want together; rest is where established flows are
// served, all of them: not what lingers after it was given up. host tells two
// machines with one name apart: the start of a daemon has closed the kernel of any
// before it with the same host, and of no other.
// seats is how many members the assignment has, reach how many ping nodes
// answer. freeze counts how often planned moves were stopped and let go again;
// the highest that is heard holds, and odd is stopped. States: 0 joining,
// 1 ready, 2 draining, 3 fenced, 4 left. Flags: 1 has closed everything and
// sends nothing more, 2 is about to, 4 witness, 8 degraded, 16 reaches fewer
// ping nodes than others, 32 hears frames to the shared MAC, 64 has closed
// everything and steps aside: it is not to be waited for until it speaks again.
//
// Ack (type 2): to (8), to's incarnation (8), n (8), epoch (16), the
// assignment's hash (8), words (1), the sets granted and refused. A bucket in
// neither is a voter's silence.
//
// A message has at most 1,400 bytes, and so passes in one frame when sealed. What
// is open is told in every heartbeat. Where the rest would not fit (the most
// nodes, thousands of buckets, and many of them wanted at once), the lowest of
// what is wanted is told first, and the others as soon as those are open.
//
// Assign (type 3): epoch (16), hash (8), shape (8), buckets (2), count of
// members (1), per member: node (8), incarnation (8), term and counter at which
// it was first listed (4, 4), weight (2); count of those that lost their seat by
// it (1), per one of them: node (8), why (1); then the first bucket of this part
// (2), how many it has (2, at most 1,024), and their owners' indices, two buckets
// a byte, the lower bucket in the upper half. The hash is the first 8 bytes of the
// SHA-256 of everything else from the epoch on, as it would be with all owners in
// one part, later versions' fields left out. Why: 0 unknown, 1 has left, 2 is
// unreachable, 3 does not hear the master, 4 was restarted, 5 is leaving, 6
// drains, 7 had to close its share, 8 reaches fewer ping nodes, 9 is degraded, 10
// was too slow.
//
// Fetch (type 4): the epoch (16) that the sender wants to be told.
//
// Probe (type 5): to (8). Proof (type 6): to (8), to's incarnation (8).
// Both are the same in all versions.
package membership

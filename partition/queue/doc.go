// Package queue enforces a director's share in user space, for kernels and
// policies whose nftables can hold a lease and not judge a packet: without
// nft_hash, or without maps of verdicts.
//
// The table of partition/nft does all but one thing: it lets nothing in without
// a live lease, and hands what is to the shared MAC to queues of
// nfnetlink_queue, where this package asks partition.Divider.Decide.
//
//	kernel ──► queue 0 ──► reader ──┐
//	  CPUs ──► queue 1 ──► reader ──┼─► share: decide, verdict ──► chain judged: lease? ──► IPVS
//	       ──► …                    │
//	     110 ► backstop ► reader ───┘
//
// What must hold, and what holds it:
//
//   - acceptance ends with the lease, whatever happens to this process: the
//     kernel asks for the lease before it queues a packet, and again behind the
//     queue, at the moment when a verdict takes effect. A process that was
//     stopped with packets in its queues may accept them when it goes on; the
//     kernel drops them there;
//   - after Apply returned, no packet is accepted by an older share: readers
//     hold the share from a decision until its verdict has taken effect, which
//     it has when the system call returns, and Apply waits for them. So a
//     bucket that is given away is free when Apply says so, and a lease cannot
//     be renewed with a verdict of an earlier one still on its way;
//   - nobody reads, nothing is accepted: the rule has no bypass and the queues
//     do not fail open. What exceeds a queue is dropped and counted (overruns);
//   - nothing is accepted unseen: every packet is accepted by its own number.
//     Only drops name a range;
//   - a packet costs no allocation.
//
// Accepting costs a copy and a system call's share, some microseconds a packet:
// this is the alternative, not the default.
package queue

// Package nft enforces a director's share with nftables.
//
// Every director receives every frame for a virtual address, addressed to a
// MAC that no interface has. The kernel takes such a frame for somebody else's
// (PACKET_OTHERHOST) and its IP layer drops it, until a rule of this package
// makes it this host's. So admission is a positive act: without our table, or
// without a live lease, nothing is accepted.
//
// What must hold:
//
//   - a frame to the shared MAC is admitted only if the lease lives and its
//     bucket is in open (packets that open a flow) or in rest (others of TCP
//     and SCTP);
//   - the lease ends by itself no later than Config.Lease after Arm(n) was
//     called for the last n that was confirmed, whatever happens to the
//     process, its netlink socket or other people's tables meanwhile;
//   - what Apply returned for is in the kernel, read back; if that cannot be
//     known the error is ErrUnknown;
//   - the packet mark is never written: the hash and the lookup are done in
//     registers.
//
// # The table
//
// One table of family inet, so that all chains share its sets, judges; a
// second of family netdev and the same name admits:
//
//	ingress on the LAN interface              input, priority -10
//	  to a VIP? ──► vip                         from lo: accept
//	                 │                          to a VIP and the shared MAC?
//	   own MAC ──────┼──► own: count, accept          │
//	   fragment ─────┼──► fragment: lease? pass       │
//	                 ▼                                ▼
//	               judge ◄────────────────────────────┘
//	                 │ lease, class, bucket: drop, or return to the caller
//	                 ▼
//	               pass
//	                 │                        input, priority 110: backstop
//	  gate (netdev): with a pass? host
//
// The kernel lets no chain of family inet set the packet type but in
// prerouting, which a frame for another host never reaches
// (nft_meta_set_validate in net/netfilter/nft_meta.c), and lets no table see
// another's sets. So the first hands the second a pass: a random value, new
// at each Open, in skb->priority, which is 0 on arrival and 0 again behind the
// gate. If either table is missing nothing is admitted.
//
// Every admitted packet is judged twice. The second judgement is the
// default-deny for packets that something else admitted, and the only one
// with the real ports for datagrams that came in fragments: a later
// fragment has no ports, so all are admitted and reassembled first.
//
// # The lease
//
// A netlink transaction waits for other people's transactions, seconds if they
// load a blocklist, and a process that is stopped between its decision to
// renew and the write would write a whole new lease when it goes on. So leases
// are renewed from the packet path, by datagrams that the Filter sends to
// itself and that a chain of the output hook consumes:
//
//	arm n       puts n into the set armed, for Lease/3
//	confirm n   if n is still in armed, sets the one element of the set
//	            lease to live for the other two thirds
//
// Sent late, a confirm finds its n lapsed and renews nothing. The datagrams
// carry a random secret and must come from this process's uid. The chain runs
// before conntrack and any usual filter chain, and what it consumes it drops,
// which the sender sees as EPERM; a datagram that comes back unconsumed is
// therefore news that n is not armed, or that the table is gone.
//
// The sender's address and port are also the lock that keeps a second daemon
// out of this network namespace.
package nft

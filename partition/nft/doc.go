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
//     bucket is ours: in open (packets that open a flow) or in rest (others of
//     TCP and SCTP);
//   - which bucket that is, partition.Divider.Decide says, for every packet;
//   - the lease ends by itself no later than Config.Lease after Arm(n) was
//     called for the last n that was confirmed, whatever happens to the
//     process, its netlink socket or other people's tables meanwhile;
//   - what Apply returned for is in the kernel, read back; if that cannot be
//     known the error is ErrUnknown;
//   - the packet mark is never written: the hash and the lookup are done in
//     registers.
//
// # The fate of a packet
//
// One table of family inet judges; a second of family netdev and the same name
// admits. Chains from vip to other exist once per family: vip_ip and vip_ip6.
// A chain ends with a verdict or sends the packet on; only judge returns, with
// what is in motion.
//
//	ingress, on the LAN interface                 input, priority -10
//	  to a VIP? ─► vip                              with a pass: take it, accept
//	                │                               from lo: accept
//	 own MAC ───────┼─► own: count, accept          to a VIP and the shared MAC?
//	 fragment ──────┼─► fragment: lease? piece        │ still a fragment: drop
//	                ▼                                 │
//	        judged: judge ◄───────────────────────────┘
//	                │ service ─► chains of its division: tcp_0, udp_0, sctp_0, tcp_1, …
//	                │ ICMP ────► icmp: an error by its quotation: quote0_0, …
//	                │ else ────► other: by source address
//	                ▼
//	  class and bucket of the packet ─► map open or rest:
//
//	    owned:     continue, to ours
//	    in motion: return to judged, and on to moving
//	    foreign:   drop
//
//	moving: opens a flow? note it in superseded, drop     rest of such a flow? drop     else ours
//	ours:   at ingress ─► admit: shared MAC? lease? pass    at input: lease? accept
//
//	gate (netdev), behind ingress: pass or piece? host
//	backstop, input, priority 110: rest of a bucket in settling? drop
//
// So what becomes of a packet is one element of the map of its class, and that
// element counts it. A bucket is in motion when rest is ours and open is not,
// at both ends of a hand-over. What then opens a flow is the other director's,
// and so is the rest of that flow from then on: for a minute, as long as the
// set superseded remembers it.
//
// # The pass
//
// The kernel lets no chain of family inet set the packet type but in
// prerouting, which a frame for another host never reaches
// (nft_meta_set_validate in net/netfilter/nft_meta.c), and lets no table see
// another's sets. So the first hands the second a pass: a random value, new
// at each Open, in skb->priority, which is 0 on arrival. If either table is
// missing nothing is admitted. Input takes the pass back.
//
// What arrives at input without a pass is judged there: what something else
// admitted, and datagrams that came in fragments. A later fragment has no
// ports, so every director with a lease lets every fragment in, up to a limit,
// with another value that the gate takes, and the datagram is judged when it is
// whole. IPv4 is reassembled before the input hook. IPv6 is only if something
// asks for it: IPVS does, and so does the chain defrag, which matches nothing;
// where the kernel can do neither, fragments are dropped at input and counted
// (pieces).
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
//	confirm n   if n is still in armed, sets the element of the shared MAC in
//	            the set lease to live for the other two thirds
//
// Sent late, a confirm finds its n lapsed and renews nothing. The datagrams
// carry a random secret and must come from this process's uid. The chain runs
// before conntrack and any usual filter chain, and what it consumes it drops,
// which the sender sees as EPERM; a datagram that comes back unconsumed is
// therefore news that n is not armed, or that the table is gone.
//
// The sender's address and port, one for each share, are also the lock that
// keeps a second daemon for it out of this network namespace.
//
// # Where things are
//
//	admit.go    the hooks: ingress, gate, input, and what asks for the lease
//	inside.go   LVS-NAT: what real servers send, from ingress to the forward hook
//	judge.go    what decides a packet: services, ICMP, classes, buckets that move
//	family.go   where the fields are, IPv4 and IPv6, and how a bucket is computed
//	lease.go    the chain of the renewal; renewal.go sends its datagrams
//	table.go    the sets, and the table as a whole
//	share.go    Apply: the maps open and rest; Settle
//	queued.go   the table where queues judge instead of maps (package queue)
//	forwarder.go  a table before this one that hands others' frames on, where
//	            there is no shared MAC (package forward)
//	config.go   what a Filter needs to know, and what it refuses
//	probe.go    whether this kernel has what the rules need
//	obstacles.go  other people's rules that would drop what is admitted
//	expr.go     the expressions that rules are made of
//	filter.go   Open, Reset, Arm, Confirm, Verify, Close; stats.go what was counted
package nft

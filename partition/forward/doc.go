// Package forward lets directors share virtual addresses where switches do not
// flood, and behind routers that spread flows over them by themselves. There
// is no shared MAC: frames come to the own MAC of whoever answers ARP, or whom
// the router chose, and a director hands what is another's to that one.
//
//	router ──► d1 (answers ARP) ── bucket of d2 ──► d2 ──► real server
//	             │ own bucket
//	             └──► real server
//
// What must hold:
//
//   - receiving is not accepting: a frame for a virtual address that comes to
//     the interface's own MAC is made another host's (PACKET_OTHERHOST) by the
//     Fence, before any rule of nftables, and only partition/nft admits it,
//     under the lease, as a frame to the shared MAC elsewhere. Whoever flushes
//     nftables closes the director; whoever removes the Fence finds rules that
//     still judge;
//   - forwarding admits nothing. A frame that is handed on is judged by the
//     director that gets it, under its own lease. So wrong or old routes can
//     lose a packet, and never make two directors accept one;
//   - no frame goes round: what a director sent is judged and not handed on;
//   - while a bucket moves, both directors get the rest of its flows, as they
//     would from a switch that floods (Routes.Held);
//   - Close leaves the interface as Open found it.
//
// The Fence is a program of the kernel's traffic control, in the clsact hook,
// which comes before that of nftables:
//
//	clsact ─► VIP? OTHERHOST ─► nft: Forwarder ─► nft: Filter ─► gate: HOST
package forward

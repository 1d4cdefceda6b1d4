// Package syncd is the mirror's engine: it joins the kernel, the table and the
// peers, and answers for them on the control socket.
//
//	kernel --captured--> table --newest state, coalesced--> peers
//	peers --records--> table --newest state, coalesced--> kernel
//
// What must hold:
//
//   - What the kernel tells is news of ours: it gets a version here and now
//     and goes to the peers, at once on a quiet system, within flushWindow on
//     a busy one.
//   - The kernel checks nothing that it is told, so it is told only what is
//     newer than all that happened here: never over our own news, never our
//     own news again.
//   - Both directions queue a connection once, however often it changes, so
//     the queues are bounded by the table and always carry the newest state.
//   - Of a connection that is active here the kernel is right, of any other the
//     mirror. Which is which saru tells (owner.go); without it, who told of the
//     connection last. Where they differ longer than news is under way, the
//     audit makes them equal (audit.go): what the kernel did silently is told
//     to the peers, what it lost silently is told to it again.
//   - The peers know an entry to live for at least half its timeout, or as long
//     as it does here (refresh.go). More refreshes than that are not told.
//   - A connection whose real server the kernel does not know waits in the
//     mirror (held.go), and a template that directors disagree on is brought to
//     one (templates.go).
//   - Synced means: all that the reachable peers held when we joined is in the
//     table and was given to the kernel.
package syncd

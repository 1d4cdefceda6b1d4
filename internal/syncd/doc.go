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
//   - Synced means: all that the reachable peers held when we joined is in the
//     table and was given to the kernel.
package syncd

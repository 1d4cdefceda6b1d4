// Package compare measures the ways to keep directors' connection tables
// together side by side, under the same load, in the lab: the kernel's own sync
// threads, syncd on them, syncd with the kernel module.
//
// What is measured:
//
//   - how long after a client's SYN the peer director's kernel has the
//     connection, on quiet and on busy directors;
//   - of connections that arrive all the time, which ones the peer lacks when
//     the director's link is cut in the midst, by their age at the cut;
//   - processor time, of the machine and of the daemons, for each connection.
//
// What must hold: all ways are looked at through the same eye, which is the
// module's look-up of one entry in the peer's kernel. So the module is loaded
// for all of them, and those that are measured without it are told not to use
// it. Nobody listens to its events then.
//
// The lab's processors are emulated. With the virtual clock the guest has one,
// and its time is the number of instructions that it ran, a nanosecond each: the
// client, the server and both directors share a processor of 10^9 instructions
// a second, and neither the emulation nor what else the machine does shows.
// With the real clock both do. Calibrate runs the same ping-pong between two
// namespaces in the guest and natively; the ratio of the two says how much
// slower the guest's processors are. A latency without the fixed waits in it
// (the module's millisecond), divided by the ratio, is what it would be natively.
package compare

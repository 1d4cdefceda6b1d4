// Package versus measures syncd beside conntrackd, on the running kernel, in
// one run: flows synchronised a second, processor time and bytes for each.
//
// Both daemons run as a pair, one in each of two namespaces on a switch, and
// carry the same number of new flows from the one to the other:
//
//   - conntrackd (FT-FW over multicast, with its external cache) is told by its
//     kernel of UDP flows, which a third node makes with one datagram each: one
//     event for each flow, its best case. A TCP flow is three events.
//   - syncd has no IPVS on such a kernel. It is given the datagrams in which a
//     kernel's sync thread would tell of the flows, and makes those in which the
//     peer's kernel would be told. So the kernels' own work is in conntrackd's
//     figures as far as its processes do it (netlink), and not in syncd's.
//
// The bytes are those on the wire, with all headers. Processor time is of the
// two processes, in user space and in the kernel.
package versus

// Package lab builds networks of Linux directors, real servers and clients out
// of network namespaces, and breaks them: power cuts, hung daemons, cut links,
// splits of the switch, loss and delay.
//
//	       c1 …          clients      10.9.0.11 …
//	        |
//	 +------+-------+    the switch: a bridge in a namespace of its own
//	 |   |   |   |  |
//	d1  d2  d3   r1 r2   directors    10.9.0.2 …
//	                     real servers 10.9.0.21 …
//
// The LAN interface of every node is eth0. Where the kernel has IPVS the
// directors get their services from the topology; where it has none, topologies
// without services still work. Package guest brings a kernel with IPVS.
//
// What must hold:
//
//   - A power cut leaves nothing: it returns only after the kernel has
//     destroyed the director's namespace, and with it the whole IPVS table.
//   - Close leaves nothing either, whatever the test did before.
//   - Namespaces are held by descriptors of this process alone, never by bind
//     mounts, so they end with it, even after a crash.
//   - Nodes share the machine's files, except /run, which is a tmpfs of each
//     node that a power cut empties, and /sys, which shows the node's network.
package lab

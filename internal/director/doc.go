// Package director is the saru daemon of one director: it runs the protocol of
// package membership over real sockets, and lets partition/nft and
// partition/lan enforce what the protocol decides.
//
// What must hold: bad input is refused before the kernel is touched; one
// goroutine alone drives the protocol, and never waits for netlink, gossip or
// another process; the share is closed and read back before the cluster is
// told so; after a clean stop nothing of ours is left in the kernel.
//
// # Parts
//
//	Engine    the protocol: heartbeats on both paths, ticks, arm and confirm
//	applier   the bucket sets in the kernel, and whether they are still ours
//	gossip    finds members and tells their addresses; heals partitions
//	gate      asks syncd whether this node holds the cluster's connections
//	lan       the virtual addresses, the shared MAC, ARP and neighbour discovery
//	reshaper  reads the virtual services, and divides the share as they need it
//
// Of several shares each has all of these.
//
// # Paths
//
// A heartbeat goes by UDP to port gossip + 1 of every member known, and as a
// frame of Ethernet type 0x88B5 (IEEE Std 802, local experimental) to the
// shared MAC on the share's interface, the way that clients' frames take. Both
// are sealed, each path by its own boot.
package director

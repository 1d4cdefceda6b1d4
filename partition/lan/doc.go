// Package lan makes a director receive what is sent to the virtual addresses,
// on a LAN where all directors share one MAC that belongs to no interface.
//
// What must hold:
//
//   - no frame ever leaves with the shared MAC as its Ethernet source, so no
//     switch learns where it is and all switches flood it;
//   - the kernel never answers ARP or a neighbour solicitation for a virtual
//     address; the LAN does, on the one director for which Config.Answer says so;
//   - receiving is not accepting: such frames are PACKET_OTHERHOST until
//     partition/nft admits them, and the membership ends with the process;
//   - Close leaves addresses and sysctls as Open found them. An address that
//     the operator had put on the loopback interface stays.
//
// With Config.Own there is no shared MAC: the LAN answers with the interface's
// own, and what then comes is for package forward.
//
// # IPv4
//
// The virtual addresses are /32 on lo, labelled so that a later Open knows
// them for ours even after a crash. arp_ignore=1 and arp_announce=2
// (Documentation/networking/ip-sysctl.rst) keep the kernel from answering for
// them and from naming them as the sender of its own requests; Run puts them
// back when a reload of sysctl.conf changes them.
//
// # IPv6
//
// The addresses are /128 on lo, without duplicate address detection, since all
// directors have them. Of an address of another interface the kernel says
// nothing on the LAN (ndisc_recv_ns in net/ipv6/ndisc.c looks only at the
// incoming one), so solicitations are the LAN's to answer. They are sent to a
// multicast group, which a snooping switch passes to its members only: a socket
// joins it, and the kernel reports the membership from the interface's own
// link-local address as long as the process lives.
//
// # Networks
//
// A virtual network is a local route. Its addresses are answered for like
// others, but a solicitation reaches nobody who is not in the group of its low
// 24 bits; so let the router have a route to the network, by way of a single
// virtual address.
package lan

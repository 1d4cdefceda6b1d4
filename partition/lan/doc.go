// Package lan makes a director receive what is sent to the virtual addresses,
// on a LAN where all directors share one MAC that belongs to no interface.
//
// What must hold:
//
//   - no frame ever leaves with the shared MAC as its Ethernet source, so no
//     switch learns where it is and all switches flood it;
//   - the kernel never answers ARP for a virtual address; the Responder does,
//     on the one director for which its predicate says so;
//   - receiving is not accepting: such frames are PACKET_OTHERHOST until
//     partition/nft admits them, and the membership ends with the process;
//   - Close leaves addresses and sysctls as Open found them. An address that
//     the operator had put on the loopback interface stays.
//
// The virtual addresses are /32 on lo, labelled so that a later Open knows
// them for ours even after a crash. arp_ignore=1 and arp_announce=2
// (Documentation/networking/ip-sysctl.rst) keep the kernel from answering for
// them and from naming them as the sender of its own requests.
package lan

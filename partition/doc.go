// Package partition says who owns what: the flow space is cut into buckets,
// and every bucket has at most one owner.
//
// It is pure: sets of buckets, the assignment of buckets to directors, and
// what a packet is to a filter. What enforces a share is in the packages
// below: nft admits its packets, lan makes every director receive them.
//
//	bytes ──ParsePacket──► Packet ──Divider.Decide──► Decision: class, bucket
//	                                     │
//	              Plan: VIPs, services ──┘ each with its Division: sense, method, netmask
//
// What must hold:
//
//   - an assignment gives every bucket to exactly one of the members, each
//     member has its exact proportion rounded down or up, and no assignment
//     with such shares moves fewer buckets;
//   - the same input gives the same assignment, and the same decision, on
//     every director;
//   - Divider.Decide equals what the kernel's rules do, for every packet.
package partition

// Package partition says who owns what: the flow space is cut into buckets,
// and every bucket has at most one owner.
//
// It is pure: sets of buckets, the assignment of buckets to directors, and the
// function that maps a packet to its bucket exactly as the kernel does. What
// enforces a share is in the packages below: nft admits its packets, lan makes
// every director receive them.
//
// What must hold:
//
//   - an assignment gives every bucket to exactly one of the members, each
//     member has its exact proportion rounded down or up, and no assignment
//     with such shares moves fewer buckets;
//   - the same input gives the same assignment on every director;
//   - Hash.Bucket equals what the kernel's rules compute, for every packet.
package partition

// Package usersync speaks with the kernel module ip_vs_user_sync (kmod/): it
// hears of each IPVS connection as it comes, changes and goes, reads the whole
// table, and makes and deletes entries with an answer to each.
//
// What must hold:
//
//   - A message of the kernel is checked before it is believed: each length,
//     each address, the key's parts. One that is wrong is an error and is
//     counted as a loss, never half applied. Attributes of a newer module are
//     skipped.
//   - A Listener never misses events silently. Events may be lost (the
//     module had no memory or no room, the socket's queue was full); each way
//     comes to Loss, after which the listener's picture is only right again
//     once Dump was read.
//   - Reading events allocates nothing for each event.
//
// # Putting events and a dump in order
//
// Subscribe first, then Dump. Each Record, of an event or of a dump, has the
// Stamp of the moment before it was read from the entry: of two of one key the
// later one holds. A KindExpired removes the entry with its Cookie and no
// other: its Stamp is from before the entry left the table, so what comes
// later under the same key, and with another Cookie, is the next entry. While
// a dump is under way, keep what expired with its Stamp, for the dump may
// still bring the entry with an earlier one.
//
// Two CPUs tell in two streams, which a Listener hands on as they come;
// between streams the Stamp is the order.
//
// # The wire
//
// kmod/ipvs_sync.yaml describes the family as the kernel's own netlink
// specifications do; kmod/ip_vs_user_sync.h has the numbers. An event message:
//
//	nlmsghdr | genlmsghdr cmd EVENTS | CPU u32 | SEQ u64 | DROPPED u64 | CONN … | CONN …
//
// and each CONN is a nest of attributes, in host byte order except addresses
// and ports.
package usersync

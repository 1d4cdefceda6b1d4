// Package ipvs is how we speak with the kernel's IP Virtual Server: its
// generic netlink family, its table in /proc, and a private tap on its
// connection synchronisation threads.
//
// No netlink command lists or creates a connection. But the kernel's own sync
// threads tell of connections as they change, and create and change them as
// they are told. The Tap points those threads at us.
//
// # The tap
//
// What must hold: sync threads of somebody else are never touched, they are
// refused with nothing changed; after Close every sync thread, interface,
// firewall table and sysctl is as it was before the first Tap, even if a Tap
// in between was killed; nothing of the tap leaves the machine; the captured
// and the injected records never meet.
//
//	IPVS --records--> master thread --UDP--> TUN syncd0 --read--> OnRecord
//	  ^
//	  +---entries---- backup thread <--UDP-- lo <--send-- Inject
//	  ^                                             |
//	  +--------- ping on loopback addresses <-- heartbeat
//
// Each direction takes the path that other people's rules leave alone:
//
//   - Captured records go out through a TUN interface of our own. Only we
//     read its other end, and it has an address of its own for the master to
//     bind to. On lo the master would take the first global address there,
//     on a director often the VIP, and fall silent when that is removed.
//     Nothing ever comes in through the interface, so a firewall that drops
//     unknown interfaces in its input chain does no harm; one that does so in
//     its output chain must let the interface out. The interface is
//     persistent: after a crash the master thread goes on sending into
//     nothing, while a vanished interface would make it log an error for
//     each record. It is also the lock: a TUN interface has one owner.
//     It is the cheapest way too, a quarter below sockets on lo or behind a
//     veth pair, where the kernel also receives each datagram (measured by
//     TestMeasureWays; docs/performance.md).
//   - Injected records go in through lo, which firewalls accept, as ordinary
//     UDP datagrams in batches, and the kernel's socket counts what it drops.
//
// # How long a record waits
//
// A part-filled buffer of the master waits until the next record does not fit,
// or for a flush of up to 2.7 s; and the master thread, once a full buffer is
// queued, sleeps for up to 20 ms, or until eight are (ip_vs_sync.c,
// IPVS_SYNC_SEND_DELAY, IPVS_SYNC_WAKEUP_RATE). So the master's buffers hold
// one record (Config.MaxLen), and a heartbeat makes a record BeatRate times a
// second, which pushes out the one before it. On a quiet director a record then
// waits for at most 1/BeatRate + 20 ms: at 50 a second 40 ms. On a busy one
// other records push it out and wake the thread sooner.
//
// Large buffers would save the kernel a datagram for most records, and make
// each wait until the buffer is full: with 1,472 bytes, 40 records, that is 0.8
// s at 50 records a second, and 20 ms only from 2,000 a second on. Beside what
// it takes to make a connection, what they save is too little to measure
// (docs/performance.md). To change the size with the load is no way out either:
// the thread must be stopped for it, which frees its queue unsent, when most is
// in it.
//
// The heartbeat has no virtual service: it injects UDP entries on
// loopback addresses, forwarded to the machine itself, and sends a datagram
// on each in turn; each entry is injected a second before its turn and deleted
// after it, so the heartbeat outlives `ipvsadm -C` and changed timeouts, and
// each record of it that comes back proves the whole way: injection, table,
// emission, capture. IsBeat recognises these entries; they are never handed to
// OnRecord.
//
// IPVS hooks into packets only once a virtual service was added; before that
// there is nothing to capture and no heartbeat either, which is not a fault.
//
// Local processes without privileges can send multicast on any interface, so
// a small nftables table lets only root inject on lo and only the kernel send
// through the TUN interface. Where nf_tables is missing the tap works without
// it, and says so.
//
// All of it is looked at each second or few: threads, settings, interface and
// guard that somebody stopped, changed or removed are put back (health.go).
//
// How often the kernel tells again of a connection that talks follows the
// smallest timeout in use (timeouts.go).
//
// What the kernel never tells: the server's resets, expiry, half-open and
// one-packet connections. ReadConns reads its table, for an audit.
package ipvs

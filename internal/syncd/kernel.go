package syncd

import (
	"context"
	"net/netip"
	"time"

	"saru/conntable"
	"saru/syncproto/peer"
)

// A Kernel is the IPVS side as the engine sees it. What it captures it tells
// Engine.Captured.
type Kernel interface {
	// Inject makes or changes entries, no faster than the kernel takes them. The
	// last ones may still be on their way when it returns.
	Inject(conns []conntable.Connection) error
	// Delete makes an entry go. Traffic may keep it, so the caller looks.
	Delete(c conntable.Connection) error
	// Settle waits until all that Inject and Delete were given before is in the
	// kernel's table, as far as that takes it, or ctx ends. It may hold up
	// Inject meanwhile, so it is not for each record.
	Settle(ctx context.Context) error
	// Lost is how many of the datagrams that Inject and Delete sent were lost
	// before the kernel read them, since the start and as far as was looked.
	Lost() uint64
	// Entries calls fn with what the kernel's table holds now, which is no
	// snapshot: what comes and goes meanwhile may be missed, or told twice.
	// Before each slice that it reads it calls pace, on the same goroutine,
	// and ends with its error. fn does not keep the Entry.
	Entries(pace func() error, fn func(*Entry)) error
	// Services tells the real servers that there are, and how many
	// connections the kernel counts at them.
	Services() (Services, error)
	Stats() KernelStats
}

// An Entry is what the kernel's table says of a connection. Key, Dest and
// State are always known. What the source does not tell is guessed: Flags and
// Timeout from the services, the rest is left out.
type Entry struct {
	conntable.Connection
	Remaining time.Duration // until it expires, whole seconds
	Synced    bool          // made by a sync message, else by a packet here
	Torn      bool          // some of it may be older than pace's last return
}

// A Target is a real server of a virtual service.
type Target struct {
	Virtual  netip.AddrPort // invalid with FWMark
	FWMark   uint32
	Protocol uint8
	Dest     netip.AddrPort
}

// Services is what IPVS is configured for.
type Services struct {
	Targets     map[Target]struct{}
	Connections int // active and inactive, at all real servers
	Buckets     int // of the kernel's connection table; 0: not known
	Items       []peer.ServiceItem
}

// noSourceCovers is what IPVS does not keep, so that no source can tell of it.
var noSourceCovers = []string{
	"FTP through LVS-NAT: what moves a control connection's sequence numbers is conntrack's, so it outlives its director only " +
		"if the virtual address has as many digits as the real server's",
}

// KernelStats is what became of what passed between us and the kernel.
type KernelStats struct {
	Source     string            // "daemon": the kernel's sync threads
	Degraded   string            // what is wrong with capture or injection, if anything
	NotCovered []string          // what this source cannot do, for people
	Warnings   []string          // what could harm it
	Malformed  map[string]uint64 // what was captured and could not be read, by reason
	Captured   uint64            // records from the kernel
	Injected   uint64            // records to the kernel
	Drops      uint64            // records that it lost or that could not be told
	Beats      uint64            // round trips of the probe through the kernel
}

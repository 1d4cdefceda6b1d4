package nft

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"saru/partition"
)

// A Config describes the share that a Filter enforces.
type Config struct {
	Name      string           // of the table
	Interface string           // the LAN interface of the virtual addresses
	VIPs      []netip.Addr     // the virtual addresses, IPv4
	MAC       net.HardwareAddr // the shared MAC: unicast, no interface's own
	Buckets   int              // partition.ValidBuckets
	Seed      uint32           // of the hash; all directors have the same
	Sense     partition.Sense
	Lease     time.Duration // L: the longest acceptance after Arm; MinLease or more
	ShareID   int           // 1 to 255

	// Backstop silences TCP packets in the middle of a connection that IPVS
	// does not know, for the buckets given to Settle. Without IPVS (target
	// "local") it must be off: it would silence everything.
	Backstop bool
}

// MinLease is the shortest lease: the kernel's timers run in jiffies of up to
// 10 ms, and an armed heartbeat must outlive its round trip.
const MinLease = 30 * time.Millisecond

// armedFor returns a, how long an armed n can be confirmed.
func (c *Config) armedFor() time.Duration { return (c.Lease / 3).Truncate(time.Millisecond) }

// leaseFor returns l, how long a confirmed lease lives: a + l = Lease.
func (c *Config) leaseFor() time.Duration {
	return c.Lease.Truncate(time.Millisecond) - c.armedFor()
}

func (c *Config) hash() partition.Hash {
	return partition.Hash{Sense: c.Sense, Seed: c.Seed, Buckets: c.Buckets}
}

func (c *Config) check() error {
	switch {
	case c.Name == "" || len(c.Name) > 32:
		return fmt.Errorf("nft: table name %q: use 1 to 32 characters", c.Name)
	case len(c.VIPs) == 0:
		return errors.New("nft: no virtual address given")
	case len(c.MAC) != 6 || c.MAC[0]&1 != 0 || bytes.Equal(c.MAC, make([]byte, 6)):
		return fmt.Errorf("nft: shared MAC %q: use a unicast Ethernet address such as 02:00:5e:00:01:c9", c.MAC)
	case !partition.ValidBuckets(c.Buckets):
		return fmt.Errorf("nft: %d buckets: use a power of two up to %d", c.Buckets, partition.MaxBuckets)
	case !c.Sense.Valid():
		return fmt.Errorf("nft: sense %d: name at least one field", c.Sense)
	case c.Lease < MinLease || c.Lease > time.Hour:
		return fmt.Errorf("nft: lease %v: use %v to 1h", c.Lease, MinLease)
	case c.ShareID < 1 || c.ShareID > 255:
		return fmt.Errorf("nft: share id %d: use 1 to 255", c.ShareID)
	}
	for _, a := range c.VIPs {
		if !a.Unmap().Is4() {
			return fmt.Errorf("nft: virtual address %v: only IPv4 is served yet", a)
		}
	}
	ifi, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return fmt.Errorf("nft: interface %q: %w", c.Interface, err)
	}
	if bytes.Equal(ifi.HardwareAddr, c.MAC) {
		return fmt.Errorf("nft: shared MAC %v is the own one of %s: it must belong to no interface", c.MAC, c.Interface)
	}
	return nil
}

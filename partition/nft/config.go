package nft

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"time"

	"github.com/google/nftables/expr"

	"saru/partition"
)

// A Config describes the share that a Filter enforces.
type Config struct {
	Name      string           // of the table
	Interface string           // the LAN interface of the virtual addresses
	MAC       net.HardwareAddr // the shared MAC: unicast, no interface's own
	Plan      partition.Plan   // how flows are divided; all directors have the same
	Lease     time.Duration    // L: the longest acceptance after Arm; MinLease or more
	ShareID   int              // 1 to 255; of several shares in one network namespace each has its own

	// Fragments is how many fragments a second are let in at most, to be judged
	// when their datagram is whole; 0: DefaultFragments. All directors get all,
	// so this bounds what one sender of fragments can cost all of them.
	Fragments int

	// Own says that MAC is the interface's own: the directors hand each other
	// what they get (package forward). Something else must take such frames
	// for another host's; where that fails, the rules still judge them.
	Own bool

	// Queues, if set, judge instead of rules. Apply and Settle have no effect
	// on what they do.
	Queues *Queues

	// Inside is the real servers' side, under LVS-NAT; the plan's Inside says
	// how it is divided. Nil: what real servers send does not pass here.
	Inside *Inside

	// Backstop silences packets in the middle of a connection that IPVS does
	// not know, for the buckets given to Settle. Without IPVS (target "local")
	// it must be off: it would silence everything.
	Backstop bool
}

// MinLease is the shortest lease: the kernel's timers run in jiffies of up to
// 10 ms, and an armed heartbeat must outlive its round trip.
const MinLease = 30 * time.Millisecond

// DefaultFragments is a gigabit a second of the largest fragments on Ethernet.
const DefaultFragments = 80_000

func (c *Config) fragments() int { return cmp.Or(c.Fragments, DefaultFragments) }

// armedFor returns a, how long an armed n can be confirmed.
func (c *Config) armedFor() time.Duration { return (c.Lease / 3).Truncate(time.Millisecond) }

// leaseFor returns l, how long a confirmed lease lives: a + l = Lease.
func (c *Config) leaseFor() time.Duration {
	return c.Lease.Truncate(time.Millisecond) - c.armedFor()
}

// foreignMAC matches frames to none of the shared MACs.
func (c *Config) foreignMAC() phrase {
	p := toMAC(c.MAC, expr.CmpOpNeq)
	if c.Inside != nil {
		p = rule(p, toMAC(c.Inside.MAC, expr.CmpOpNeq))
	}
	return p
}

// sharedMACs are what frames for us are sent to.
func (c *Config) sharedMACs() []net.HardwareAddr {
	if c.Inside == nil {
		return []net.HardwareAddr{c.MAC}
	}
	return []net.HardwareAddr{c.MAC, c.Inside.MAC}
}

// check returns the plan made ready, or what is wrong with the configuration.
func (c *Config) check() (*partition.Divider, error) {
	switch {
	case c.Name == "" || len(c.Name) > 32:
		return nil, fmt.Errorf("nft: table name %q: use 1 to 32 characters", c.Name)
	case len(c.MAC) != 6 || c.MAC[0]&1 != 0 || bytes.Equal(c.MAC, make([]byte, 6)):
		return nil, fmt.Errorf("nft: shared MAC %q: use a unicast Ethernet address such as 02:00:5e:00:01:c9", c.MAC)
	case c.Lease < MinLease || c.Lease > time.Hour:
		return nil, fmt.Errorf("nft: lease %v: use %v to 1h", c.Lease, MinLease)
	case c.Fragments < 0:
		return nil, fmt.Errorf("nft: %d fragments a second: use 1 or more, or 0 for %d", c.Fragments, DefaultFragments)
	case c.ShareID < 1 || c.ShareID > 255:
		return nil, fmt.Errorf("nft: share id %d: use 1 to 255", c.ShareID)
	}
	if err := c.Queues.check(); err != nil {
		return nil, err
	}
	d, err := partition.NewDivider(c.Plan)
	if err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	ifi, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return nil, fmt.Errorf("nft: interface %q: %w", c.Interface, err)
	}
	if own := bytes.Equal(ifi.HardwareAddr, c.MAC); c.Own && !own {
		return nil, fmt.Errorf("nft: %v is not the own MAC of %s, which is %v", c.MAC, c.Interface, ifi.HardwareAddr)
	} else if own && !c.Own {
		return nil, fmt.Errorf("nft: shared MAC %v is the own one of %s: it must belong to no interface", c.MAC, c.Interface)
	}
	if err := c.Inside.check(c, d); err != nil {
		return nil, err
	}
	return d, nil
}

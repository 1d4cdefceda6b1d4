package ipvs

import (
	"fmt"
	"strconv"
	"time"

	"github.com/mdlayher/netlink"
)

// Timeouts are those that "ipvsadm --set" sets, in whole seconds: of TCP
// connections that are established, that are in FIN_WAIT, and of UDP.
type Timeouts struct {
	TCP, TCPFin, UDP time.Duration
}

// Timeouts asks for the kernel's timeouts.
func (c *Client) Timeouts() (Timeouts, error) {
	msgs, err := c.execute(cmdGetConfig, 0, nil)
	if err != nil {
		return Timeouts{}, named("IPVS timeouts", err, nil)
	}
	if len(msgs) != 1 {
		return Timeouts{}, fmt.Errorf("IPVS timeouts: %d answers", len(msgs))
	}
	ad, err := netlink.NewAttributeDecoder(msgs[0].Data)
	if err != nil {
		return Timeouts{}, fmt.Errorf("IPVS timeouts: %w", err)
	}
	var t Timeouts
	for ad.Next() {
		switch ad.Type() {
		case attrTCP:
			t.TCP = time.Duration(ad.Uint32()) * time.Second
		case attrTCPFin:
			t.TCPFin = time.Duration(ad.Uint32()) * time.Second
		case attrUDP:
			t.UDP = time.Duration(ad.Uint32()) * time.Second
		}
	}
	return t, ad.Err()
}

// sysctlRefresh is how often the kernel tells again of a connection that
// talks, in seconds.
const sysctlRefresh = "sync_refresh_period"

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

const (
	minRefresh = 10 * time.Second
	maxRefresh = 60 * time.Second
	// retuneEvery is how often the refresh period is chosen anew.
	retuneEvery = 10 * time.Second
)

// refreshFor returns the refresh period for the timeouts in use: a third of
// the smallest of those that a talking connection starts again, within
// minRefresh and maxRefresh. So an entry whose client talks never comes close
// to its deadline on the peers, and one that talks for hours costs a record a
// minute. (The kernel itself tells of an entry at half its timeout, if that is
// sooner and at least 10 s.)
func refreshFor(t Timeouts, services []Service) time.Duration {
	least := t.TCP
	if t.UDP > 0 {
		least = min(least, t.UDP)
	}
	for i := range services {
		if services[i].Flags&ServicePersistent != 0 {
			least = min(least, time.Duration(services[i].Timeout)*time.Second)
		}
	}
	return max(minRefresh, min(least/3, maxRefresh)).Truncate(time.Second)
}

// retune sets the kernel's refresh period for the timeouts now in use.
func (t *Tap) retune() error {
	timeouts, err := t.client.Timeouts()
	if err != nil {
		return err
	}
	services, err := t.client.Services()
	if err != nil {
		return err
	}
	want := refreshFor(timeouts, services)
	if want == time.Duration(t.refresh.Load()) {
		return nil
	}
	if err := writeSysctl(sysctlRefresh, seconds(want)); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	t.refresh.Store(int64(want))
	t.log.Debug("the kernel tells again of connections that talk", "every", want)
	return nil
}

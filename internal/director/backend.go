package director

import (
	"errors"
	"fmt"
	"net"
	"os"

	"saru/internal/config"
	"saru/partition/nft"
	"saru/partition/queue"
)

// The values of share.backend: what judges packets.
const (
	backendRules  = "nftables"
	backendQueues = "nfqueue"
)

// The values of share.mode: how directors get what is theirs.
const (
	modeFlood   = "flood"
	modeForward = "forward"
)

// means reads by what means packets are got and judged.
func (f *File) means(s *Settings) error {
	if s.Backend = f.Share.Backend; s.Backend != backendRules && s.Backend != backendQueues {
		return config.Bad("share.backend = %q: no such value; use %q or %q", s.Backend, backendRules, backendQueues)
	}
	if s.Forward = f.Share.Mode == modeForward; !s.Forward && f.Share.Mode != modeFlood {
		return config.Bad("share.mode = %q: no such value; use %q or %q", f.Share.Mode, modeFlood, modeForward)
	}
	if s.Forward && f.Share.MAC != "" {
		return config.Bad("share.mac = %q: mode %q uses the interfaces' own addresses; remove the key", f.Share.MAC, modeForward)
	}
	if f.Share.Inside != nil && (s.Forward || s.Backend == backendQueues) {
		return config.Bad("share.inside: only with mode %q and backend %q", modeFlood, backendRules)
	}
	return nil
}

// sharedMAC reads the MAC that the directors share on a LAN that floods.
func (f *File) sharedMAC(s *Settings, ifi *net.Interface) (net.HardwareAddr, error) {
	text := f.Share.MAC
	if text == "" {
		text = fmt.Sprintf("02:00:5e:00:01:%02x", s.ID)
	}
	return sharedMAC("share.mac", text, ifi)
}

// openFilter puts the closed table in place (H1), by the backend that s names.
func openFilter(s *Settings) (Filter, error) {
	cfg := s.filterConfig()
	var f Filter
	var err error
	if s.Backend == backendQueues {
		f, err = queue.Open(cfg)
	} else {
		f, err = nft.Open(cfg)
	}
	if err != nil {
		return nil, err // not f: a nil pointer in it would not be nil
	}
	return f, nil
}

// filterConfig is what filters are made of.
func (s *Settings) filterConfig() nft.Config {
	return nft.Config{
		Name: s.tableName(), Interface: s.Interface, MAC: s.MAC, Lease: s.KernelLease(), ShareID: s.ID, Backstop: s.IPVS,
		Plan: s.Plan(), Fragments: s.Fragments, Inside: s.filterInside(), Own: s.Forward,
	}
}

// probeFilter says whether this kernel can do what a backend needs, as bad
// input if it cannot.
func probeFilter(backend string) error {
	probe, needs := nft.Probe, "CONFIG_NF_TABLES, its inet and netdev families and CONFIG_NFT_HASH, or share.backend = \"nfqueue\""
	if backend == backendQueues {
		probe, needs = nft.ProbeQueues, "CONFIG_NF_TABLES, its inet and netdev families and CONFIG_NETFILTER_NETLINK_QUEUE"
	}
	err := probe()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return config.Bad("%v; run saru as root, or with CAP_NET_ADMIN and CAP_NET_RAW", err)
	}
	return config.Bad("this kernel cannot fence a share: %v; use one with %s", err, needs)
}

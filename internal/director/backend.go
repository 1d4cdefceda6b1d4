package director

import (
	"errors"
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

func (f *File) backend(s *Settings) error {
	if s.Backend = f.Share.Backend; s.Backend != backendRules && s.Backend != backendQueues {
		return config.Bad("share.backend = %q: no such value; use %q or %q", s.Backend, backendRules, backendQueues)
	}
	return nil
}

// openFilter puts the closed table in place (H1), by the backend that s names.
func openFilter(s *Settings) (Filter, error) {
	cfg := nft.Config{
		Name: "saru", Interface: s.Interface, MAC: s.MAC, Lease: s.KernelLease(), ShareID: s.ID, Backstop: s.IPVS,
		Plan: s.Plan(), Fragments: s.Fragments,
	}
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
		return config.Bad("%v: saru must run as root, or with CAP_NET_ADMIN and CAP_NET_RAW", err)
	}
	return config.Bad("this kernel cannot fence a share: %v; use one with %s", err, needs)
}

package forward

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/nft"
)

// A Forwarder is a Fence, and the rules that hand frames on.
type Forwarder struct {
	fence *Fence
	rules *nft.Forwarder
}

// Open puts both in place; nothing is handed on yet. cfg is that of the Filter
// which judges behind them.
func Open(cfg nft.Config) (_ *Forwarder, err error) {
	f := &Forwarder{}
	if f.rules, err = nft.OpenForwarder(cfg); err != nil {
		return nil, err
	}
	if f.fence, err = OpenFence(cfg.Interface, cfg.ShareID, cfg.Plan.VIPs); err != nil {
		return nil, errors.Join(err, f.rules.Close())
	}
	return f, nil
}

// Set changes where frames are handed.
func (f *Forwarder) Set(r nft.Routes) error { return f.rules.Set(r) }

// Replan divides flows in another way.
func (f *Forwarder) Replan(p partition.Plan) error { return f.rules.Replan(p) }

// Probe says whether the kernel can run a Fence. It changes nothing.
func Probe() error {
	fd, err := load(assemble([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")}))
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Stats counts what was handed on.
func (f *Forwarder) Stats() (nft.ForwarderStats, error) { return f.rules.Stats() }

// Keep reports whether the Fence stood, and puts it back if somebody had removed
// it: meanwhile the rules of nftables alone kept out what is not this director's.
func (f *Forwarder) Keep() (stood bool, err error) {
	if stood, err = f.fence.Intact(); stood || err != nil {
		return stood, err
	}
	return false, f.fence.Restore()
}

// Close removes both. It may be called twice.
func (f *Forwarder) Close() error { return errors.Join(f.rules.Close(), f.fence.Close()) }

package conntable

import (
	"net/netip"
	"testing"
	"time"
)

func TestOwned(t *testing.T) {
	table := New(1000)
	const us, them = NodeID(1), NodeID(2)
	apply := func(i int, clock uint64, node NodeID, flags uint32, deleted bool) {
		r := Record{Version: Version{LiveClock + clock, node}, Remaining: time.Minute, Deleted: deleted}
		r.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1024)
		r.Virtual, r.Dest = netip.MustParseAddrPort("10.9.0.100:80"), netip.MustParseAddrPort("10.9.0.21:80")
		r.Protocol, r.State, r.Flags, r.Timeout = 6, 1, flags, time.Minute
		r.Template = flags&FlagTemplate != 0
		table.Apply(&r, 0)
	}
	for i := range 10 {
		apply(i, 1, us, FlagFwdGate, false)
	}
	apply(10, 1, us, FlagFwdGate|FlagInactive, false)
	apply(11, 1, us, FlagFwdGate|FlagTemplate, false)
	apply(12, 1, us, FlagFwdGate|FlagSync, false) // found, made by a sync message
	apply(13, 1, them, FlagFwdGate, false)
	apply(0, 2, us, FlagFwdGate, true)               // ended
	apply(1, 2, them, FlagFwdGate, false)            // went to them
	apply(2, 2, us, FlagFwdGate|FlagInactive, false) // closes
	apply(13, 2, us, FlagFwdGate, false)             // came to us
	if got, want := table.Owned(us), (Owned{8, 2, 1}); got != want {
		t.Errorf("we own %+v, want %+v", got, want)
	}
	if got, want := table.Owned(them), (Owned{1, 0, 0}); got != want {
		t.Errorf("they own %+v, want %+v", got, want)
	}
}

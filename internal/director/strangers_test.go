package director

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestStrangers(t *testing.T) {
	var s strangers
	vip, mac, start := netip.MustParseAddr("10.9.0.100"), net.HardwareAddr{2, 0, 0, 0, 0, 7}, time.Unix(1000, 0)
	if !s.saw(vip, mac, start) || s.saw(vip, mac, start.Add(time.Minute)) {
		t.Error("one stranger is news once")
	}
	if all, n := s.now(start.Add(5 * time.Minute)); len(all) != 1 || n != 2 || all[0].MAC != mac.String() || !all[0].Last.Equal(start.Add(time.Minute)) {
		t.Errorf("%+v, %d", all, n)
	}
	if all, _ := s.now(start.Add(12 * time.Minute)); len(all) != 0 {
		t.Errorf("after its time: %+v", all)
	}
	for i := range 100 {
		s.saw(vip, net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}, start.Add(12*time.Minute))
	}
	if all, n := s.now(start.Add(12 * time.Minute)); len(all) != strangersKept || n != 102 {
		t.Errorf("%d kept of %d", len(all), n)
	}
}

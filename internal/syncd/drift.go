package syncd

import (
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/ipvs"
	"saru/syncproto/peer"
)

// appendItems appends what a service and its real servers are called and how
// they are configured, in ipvsadm's words. Two directors that are to send a
// client to the same real server, and take over each other's connections,
// have the same.
func appendItems(items []peer.ServiceItem, s *ipvs.Service, dests []ipvs.Dest) []peer.ServiceItem {
	name := fmt.Sprintf("fwmark %d", s.FWMark)
	if s.FWMark == 0 {
		name = s.Addr.String() + "/" + strings.ToLower(protocolName(s.Protocol))
	}
	items = append(items, peer.ServiceItem{Name: name, Value: serviceValue(s)})
	for i := range dests {
		d := &dests[i]
		value := fmt.Sprintf("weight %d, %s", d.Weight, forwardNames[d.Forward&conntable.FlagFwdMask])
		if d.Upper != 0 || d.Lower != 0 {
			value += fmt.Sprintf(", thresholds %d and %d", d.Upper, d.Lower)
		}
		items = append(items, peer.ServiceItem{Name: name + " to " + d.Addr.String(), Value: value})
	}
	return items
}

func serviceValue(s *ipvs.Service) string {
	value := s.Scheduler
	if s.Flags&ipvs.ServicePersistent != 0 {
		value += fmt.Sprintf(", persistent %d s", s.Timeout)
		if n, all := maskBits(s); n != all && n != 0 {
			value += fmt.Sprintf(" by /%d", n)
		}
		if s.PEName != "" {
			value += " by " + s.PEName
		}
	}
	if s.Flags&ipvs.ServiceOnePacket != 0 {
		value += ", one packet"
	}
	// Flags 1 to 3 of the scheduler (IP_VS_SVC_F_SCHED1 to 3).
	if f := s.Flags >> 3 & 7; f != 0 {
		value += fmt.Sprintf(", scheduler flags %d", f)
	}
	return value
}

// maskBits returns the length of the persistence prefix, and what it would be
// for each client alone. IPv4's is a mask.
func maskBits(s *ipvs.Service) (n, all int) {
	if s.Family == unix.AF_INET6 {
		return int(s.Netmask), 128
	}
	return bits.OnesCount32(s.Netmask), 32
}

// tellServices tells the peers what is configured here, so that differences
// are found.
func (e *Engine) tellServices(s *Services) {
	items := s.Items
	if f := e.filter.Load().String(); f != "" {
		items = append(items[:len(items):len(items)], peer.ServiceItem{Name: "syncd's filter", Value: f})
	}
	e.session.SetServices(items)
}

// drift counts the differences to all peers' services.
func (st *Status) drift() int {
	n := 0
	for i := range st.Peers {
		n += len(st.Peers[i].Drift)
	}
	return n
}

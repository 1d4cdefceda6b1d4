package nft

import (
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// renewalAddr returns the address that a Filter sends its datagrams to, and
// from. It is on every loopback interface, and a port from 257 to 511 is
// root's alone and out of the range that RPC programs take theirs from.
func (c *Config) renewalAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 'S', 'A', 'R'}), uint16(512-c.ShareID))
}

// renewal returns the chains that consume the datagrams of package comment's
// "The lease". Their layout is with type renewer. What the host sends else goes
// by after one comparison.
func (t *table) renewal(cfg *Config, s secrets) []chain {
	to := cfg.renewalAddr().Addr().As4()
	port := cfg.renewalAddr().Port()
	authentic := rule(
		families[0].isPacket(), l4(unix.IPPROTO_UDP),
		meta(expr.MetaKeySKUID, host32(uint32(os.Geteuid()))...),
		transport(2, byte(port>>8), byte(port)),
		transport(udpHeader, s.datagram[:]...),
	)
	// An element for each MAC, by which packets ask for the lease.
	var renew phrase
	for _, mac := range cfg.sharedMACs() {
		renew = append(renew, immediate(keyReg, mac...), update(t.lease, keyReg, cfg.leaseFor()))
	}
	heartbeat := load(transportHeader, keyReg, udpHeader+renewalHeartbeat, 4)
	base := chain{name: "lease", hook: nftables.ChainHookOutput, priority: leasePriority, rules: []phrase{
		rule(matchBytes(networkHeader, families[0].packet.vip, expr.CmpOpEq, to[:]...), goTo("renewal")),
	}}
	return []chain{base, {name: "renewal", rules: []phrase{
		rule(authentic, transport(udpHeader+renewalOp, opArm),
			phrase{heartbeat, update(t.armed, keyReg, cfg.armedFor())},
			count(cntArmed), drop()),
		rule(authentic, transport(udpHeader+renewalOp, opConfirm),
			phrase{heartbeat, in(t.armed, keyReg)}, renew, count(cntConfirmed), drop()),
	}}}
}

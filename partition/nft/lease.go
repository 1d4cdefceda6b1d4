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

// renewal returns the chain that consumes the datagrams of package comment's
// "The lease". Their layout is with type renewer.
func (t *table) renewal(cfg *Config, s secrets) chain {
	port := cfg.renewalAddr().Port()
	authentic := rule(
		families[0].isPacket(), l4(unix.IPPROTO_UDP),
		meta(expr.MetaKeySKUID, host32(uint32(os.Geteuid()))...),
		transport(2, byte(port>>8), byte(port)),
		transport(udpHeader, s.datagram[:]...),
	)
	heartbeat := load(transportHeader, keyReg, udpHeader+renewalHeartbeat, 4)
	return chain{name: "lease", hook: nftables.ChainHookOutput, priority: leasePriority, rules: []phrase{
		rule(authentic, transport(udpHeader+renewalOp, opArm),
			phrase{heartbeat, update(t.armed, keyReg, cfg.armedFor())},
			count(cntArmed), drop()),
		rule(authentic, transport(udpHeader+renewalOp, opConfirm),
			phrase{
				heartbeat, in(t.armed, keyReg),
				immediate(keyReg, host32(leaseKey)...), update(t.lease, keyReg, cfg.leaseFor()),
			},
			count(cntConfirmed), drop()),
	}}
}

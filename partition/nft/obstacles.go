package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// An Obstacle is something in other people's rules that drops what a share
// serves, or may.
type Obstacle struct {
	Where string // "table inet filter, chain forward, rule 7"
	What  string
}

func (o Obstacle) String() string { return o.Where + ": " + o.What }

// Obstacles reads the ruleset of this network namespace, the share's own tables
// apart, whose name starts with own. nat says that real servers' replies come
// through the forward hook. Only what can be told from a rule alone is found:
// rules of iptables-legacy are not seen, nor conditions that never hold.
func Obstacles(own string, nat bool) (all []Obstacle, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nft: list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table == nil || strings.HasPrefix(ch.Table.Name, own) {
			continue
		}
		found, err := obstaclesIn(c, ch, nat)
		if errors.Is(err, unix.ENOENT) {
			continue // somebody removed it meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("nft: read table %s, chain %s: %w", ch.Table.Name, ch.Name, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyARP: "arp",
}

func obstaclesIn(c *nftables.Conn, ch *nftables.Chain, nat bool) (all []Obstacle, err error) {
	where := fmt.Sprintf("table %s %s, chain %s", familyNames[ch.Table.Family], ch.Table.Name, ch.Name)
	at := func(hook *nftables.ChainHook) bool { return ch.Hooknum != nil && *ch.Hooknum == *hook }
	ip := slices.Contains([]nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}, ch.Table.Family)
	if drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop; drops && ip {
		switch {
		case at(nftables.ChainHookInput):
			all = append(all, Obstacle{where, "its policy is drop: it must accept what goes to the virtual addresses, as if this host itself served them"})
		case at(nftables.ChainHookForward) && nat:
			all = append(all, Obstacle{where, "its policy is drop: it must accept what real servers send, and what goes to them"})
		}
	}
	if !ip {
		return all, nil
	}
	// What a chain without a hook is jumped to from is not looked for.
	forwards := nat && (ch.Hooknum == nil || at(nftables.ChainHookForward))
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		here := fmt.Sprintf("%s, rule handle %d", where, r.Handle)
		if slices.ContainsFunc(r.Exprs, func(e expr.Any) bool { _, is := e.(*expr.SynProxy); return is }) {
			all = append(all, Obstacle{
				here,
				"it answers handshakes itself (synproxy): no other director knows the sequence numbers that it makes up, so its connections end at a failover",
			})
		}
		if forwards && dropsInvalid(c, ch.Table, r.Exprs) {
			all = append(all, Obstacle{
				here,
				"it drops what connection tracking calls invalid: real servers' replies are, since IPVS does not tell it of them; accept what comes from the real servers before it",
			})
		}
	}
	return all, nil
}

// dropsInvalid reports whether a rule drops packets for being invalid: "ct
// state invalid drop", "ct state { invalid, untracked } reject", or a map with
// "invalid : drop".
func dropsInvalid(c *nftables.Conn, t *nftables.Table, rule []expr.Any) bool {
	state, invalid := uint32(0), false
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Ct:
			state = 0
			if e.Key == expr.CtKeySTATE && !e.SourceRegister {
				state = e.Register
			}
		case *expr.Bitwise:
			if state != 0 && e.SourceRegister == state && len(e.Mask) == 4 {
				invalid = binaryutil.NativeEndian.Uint32(e.Mask)&ctInvalid != 0
			}
		case *expr.Lookup:
			if state == 0 || e.SourceRegister != state {
				continue
			}
			found, kind := invalidIn(c, t, e)
			if e.IsDestRegSet && kind == expr.VerdictDrop {
				return true
			}
			invalid = found && !e.IsDestRegSet
		case *expr.Verdict:
			if invalid && e.Kind == expr.VerdictDrop {
				return true
			}
		case *expr.Reject:
			if invalid {
				return true
			}
		}
	}
	return false
}

// invalidIn reports whether a set has the state invalid, and what a map does
// with it.
func invalidIn(c *nftables.Conn, t *nftables.Table, l *expr.Lookup) (found bool, kind expr.VerdictKind) {
	elements, err := c.GetSetElements(&nftables.Set{Table: t, Name: l.SetName, KeyType: nftables.TypeCTState, Anonymous: true})
	if err != nil {
		return false, 0 // an obstacle that cannot be read is not named
	}
	for _, e := range elements {
		if len(e.Key) == 4 && binaryutil.NativeEndian.Uint32(e.Key) == ctInvalid {
			if kind, err = verdictIn(e.Val); err != nil {
				kind = expr.VerdictContinue // an element of a set has none
			}
			return true, kind
		}
	}
	return false, 0
}

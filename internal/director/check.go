package director

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"saru/internal/config"
	"saru/ipvs"
	"saru/partition/lan"
	"saru/partition/nft"
)

// Check prints what s asks for and what the kernel can do. Its error is that
// of Possible.
func Check(w io.Writer, s *Settings) error {
	fmt.Fprintf(w, "configuration  good: node %s of cluster %s, gossip %v, heartbeats UDP port %d\n", s.Node, s.Cluster, s.Bind, s.Bind.Port()+1)
	if len(s.VIPs) == 0 {
		fmt.Fprintln(w, "share          none: no addresses are configured, membership only")
	} else {
		fmt.Fprintf(w, "share          %s on %s, MAC %v, %d buckets by %v, lease %v\n", vipList(s.VIPs), s.Interface, s.MAC, s.Buckets, s.Sense, s.Lease)
	}
	if in := s.Inside; in != nil {
		fmt.Fprintf(w, "inside         %v on %s, MAC %v, real servers in %s\n", in.Address, in.Interface, in.MAC, vipList(in.Networks))
	}
	fmt.Fprintf(w, "nftables       %s\n", verdict("yes", nft.Probe()))
	fmt.Fprintf(w, "nfqueue        %s\n", verdict("yes", nft.ProbeQueues()))
	fmt.Fprintf(w, "IPVS           %s\n", verdict(probeIPVS()))
	if len(s.VIPs) > 0 {
		printObstacles(w, s)
		printFlooding(w, s, printAnswers(w, s))
	}
	for _, o := range s.Others {
		fmt.Fprintf(w, "share %-8d %s on %s, MAC %v, %d buckets by %v\n", o.ID, vipList(o.VIPs), o.Interface, o.MAC, o.Buckets, o.Sense)
	}
	for _, share := range append([]*Settings{s}, s.Others...) {
		if err := Possible(share); err != nil {
			return err
		}
	}
	return nil
}

// answersWithin is how long 'saru check' waits for who has the virtual
// addresses.
const answersWithin = 900 * time.Millisecond

// printAnswers says who on the LAN answers for the virtual addresses: nobody,
// or the directors that serve already, of which it reports whether there are any.
func printAnswers(w io.Writer, s *Settings) (served bool) {
	var ask []netip.Addr
	for _, v := range s.VIPs {
		if v.IsSingleIP() {
			ask = append(ask, v.Addr())
		}
	}
	found, err := lan.Probe(context.Background(), s.Interface, ask, answersWithin)
	if err != nil {
		fmt.Fprintf(w, "addresses      not asked for: %v\n", err)
		return false
	}
	for _, a := range ask {
		switch mac := found[a]; {
		case mac == nil:
			fmt.Fprintf(w, "addresses      %v: nobody else on %s answers for it\n", a, s.Interface)
		case !s.Forward && bytes.Equal(mac, s.MAC):
			served = true
			fmt.Fprintf(w, "addresses      %v: served with the shared MAC already\n", a)
		case s.Forward:
			fmt.Fprintf(w, "addresses      %v: answered by %v; is that the master?\n", a, mac)
		default:
			fmt.Fprintf(w, "addresses      %v: ANSWERED BY %v, which is not the shared MAC: take the address away there, or clients go on there\n", a, mac)
		}
	}
	return served
}

// printObstacles names what in other people's rules drops the share's packets.
func printObstacles(w io.Writer, s *Settings) {
	all, err := nft.Obstacles(ownTables, s.Inside != nil)
	switch {
	case err != nil:
		fmt.Fprintf(w, "other rules    not read: %v\n", err)
	case len(all) == 0:
		fmt.Fprintln(w, "other rules    none of nftables that would drop the share's packets")
	}
	for _, o := range all {
		fmt.Fprintf(w, "other rules    %v\n", o)
	}
}

func verdict(yes string, err error) string {
	if err != nil {
		return "no: " + err.Error()
	}
	return yes
}

// smallTable is the kernel's default, 12 bits: long chains for any real load.
const smallTable = 1 << 12

func probeIPVS() (is string, err error) {
	c, err := ipvs.Dial()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	info, err := c.Info()
	if err == nil && info.TableSize <= smallTable {
		return fmt.Sprintf("yes, with a table of only %d buckets: set conn_tab_bits of ip_vs to 20", info.TableSize), nil
	}
	return "yes", err
}

// ipvsSysctls is where IPVS has its settings, of the network namespace.
const ipvsSysctls = "/proc/sys/net/ipv4/vs"

// notSloppy refuses a kernel that schedules packets from the middle of a
// connection: a director that does not know the connection yet would give it
// to another real server, whose reset ends it.
func notSloppy(sysctls string) error {
	for _, name := range []string{"sloppy_tcp", "sloppy_sctp"} {
		// Where IPVS is not there yet, it starts with 0.
		b, err := os.ReadFile(filepath.Join(sysctls, name))
		if v := strings.TrimSpace(string(b)); err == nil && v != "0" {
			return config.Bad("net.ipv4.vs.%s = %s: a director that takes a share over would move established connections to other real servers; set it to 0", name, v)
		}
	}
	return nil
}

package versus

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/net/ipv4"

	"saru/test/lab"
)

// conntrackdConf is the documentation's example for FT-FW, with larger buffers
// so that bursts are not lost, and without a filter.
var conntrackdConf = template.Must(template.New("conf").Parse(`
Sync {
	Mode FTFW { ResendQueueSize 524288 PurgeTimeout 60 ACKWindowSize 300 DisableExternalCache no }
	Multicast {
		IPv4_address 225.0.0.50
		Group 3780
		IPv4_interface {{.Addr}}
		Interface eth0
		SndSocketBuffer 16777216
		RcvSocketBuffer 16777216
		Checksum on
	}
}
General {
	HashSize 65536
	HashLimit 1048576
	LogFile {{.Dir}}/conntrackd.out
	LockFile {{.Dir}}/conntrackd.lock
	UNIX { Path {{.Dir}}/conntrackd.ctl }
	NetlinkBufferSize 67108864
	NetlinkBufferSizeMaxGrowth 268435456
	NetlinkEventsReliable no
}
`))

// A conntrackd is one node's daemon.
type conntrackd struct {
	node *lab.Node
	conf string
	proc *lab.Process
}

func startConntrackd(ctx context.Context, n *lab.Node) (*conntrackd, error) {
	var conf bytes.Buffer
	if err := conntrackdConf.Execute(&conf, n); err != nil {
		return nil, err
	}
	c := &conntrackd{node: n, conf: filepath.Join(n.Dir, "conntrackd.conf")}
	if err := os.WriteFile(c.conf, conf.Bytes(), 0o600); err != nil {
		return nil, err
	}
	var err error
	c.proc, err = n.Start(ctx, "conntrackd", []string{"conntrackd", "-C", c.conf}, lab.Options{})
	return c, err
}

// cached returns how many flows its cache ("internal", "external") has.
func (c *conntrackd) cached(ctx context.Context, cache string) (int, error) {
	out, err := c.node.Run(ctx, "conntrackd", "-C", c.conf, "-s", "cache")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(out, "cache:"+cache)
	_, rest, ok := strings.Cut(rest, "active objects:")
	if f := strings.Fields(rest); ok && len(f) > 0 {
		return strconv.Atoi(f[0])
	}
	return 0, fmt.Errorf("conntrackd: no count of the %s cache in %q", cache, out)
}

// sinkPort is where all flows lead to; nobody answers.
const sinkPort = 9

// flowNet is what the flows go to, all of it the first director's own.
var flowNet = netip.MustParsePrefix("10.200.0.0/16")

// prepare makes director track flows to flowNet, and the client reach it.
func prepare(ctx context.Context, director, client *lab.Node) error {
	for _, argv := range [][]string{
		{"ip", "route", "add", "local", flowNet.String(), "dev", "lo"},
		{"nft", "table inet versus { chain input { type filter hook input priority 0; ip daddr " + flowNet.String() + " ct state new counter accept; }; chain output { type filter hook output priority 0; ip protocol icmp drop; }; }"},
	} {
		if _, err := director.Run(ctx, argv...); err != nil {
			return err
		}
	}
	_, err := client.Run(ctx, "ip", "route", "add", flowNet.String(), "via", director.Addr.String())
	return err
}

// makeFlows sends one datagram for each of n flows from the client, so many a
// second, or as fast as it can at 0.
func makeFlows(client *lab.Node, n, rate int) error {
	return client.Do(func() error {
		var socks []*ipv4.PacketConn
		for range (n + 65535) / 65536 { // as many source ports
			c, err := net.ListenUDP("udp4", &net.UDPAddr{})
			if err != nil {
				return err
			}
			defer c.Close()
			socks = append(socks, ipv4.NewPacketConn(c))
		}
		ms := make([]ipv4.Message, 64)
		start, sent := time.Now(), 0
		for sent < n {
			at := sent / 65536
			batch := min(len(ms), n-sent, 65536-sent%65536)
			for i := range ms[:batch] {
				low := (sent + i) % 65536
				ms[i].Buffers = [][]byte{{0}}
				ms[i].Addr = &net.UDPAddr{IP: net.IPv4(10, 200, byte(low>>8), byte(low)), Port: sinkPort}
			}
			k, err := socks[at].WriteBatch(ms[:batch], 0)
			if err != nil {
				return fmt.Errorf("make flows: %w", err)
			}
			sent += k
			if rate > 0 {
				time.Sleep(time.Duration(sent)*time.Second/time.Duration(rate) - time.Since(start))
			}
		}
		return nil
	})
}

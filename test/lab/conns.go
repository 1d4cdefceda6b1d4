package lab

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Conn is an entry of a director's IPVS connection table. A persistence
// template has client port 0.
type Conn struct {
	Proto                 string // "TCP", "UDP"
	Client, Virtual, Dest netip.AddrPort
	State                 string // "ESTABLISHED"
	Expires               time.Duration
}

// ConnTable returns the director's IPVS connections.
func (d *Director) ConnTable() ([]Conn, error) {
	var text []byte
	err := d.Do(func() (err error) {
		// /proc/net would be that of the process's first thread.
		text, err = os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: connections: %w", d.Name, err)
	}
	conns, err := parseConns(text)
	if err != nil {
		return nil, fmt.Errorf("%s: connections: %w", d.Name, err)
	}
	return conns, nil
}

// parseConns reads /proc/net/ip_vs_conn (ip_vs_conn_seq_show in the kernel's
// net/netfilter/ipvs/ip_vs_conn.c): a headline, then per line
//
//	Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires PEName PEData
//
// with IPv4 addresses and ports in hexadecimal, IPv6 addresses in brackets.
func parseConns(text []byte) ([]Conn, error) {
	var conns []Conn
	lines := bufio.NewScanner(bytes.NewReader(text))
	for first := true; lines.Scan(); first = false {
		f := strings.Fields(lines.Text())
		if first || len(f) == 0 {
			continue
		}
		if len(f) < 9 {
			return nil, fmt.Errorf("line %q has %d fields, want 9", lines.Text(), len(f))
		}
		c := Conn{Proto: f[0], State: f[7]}
		for i, to := range []*netip.AddrPort{&c.Client, &c.Virtual, &c.Dest} {
			a, err := parseEndpoint(f[1+2*i], f[2+2*i])
			if err != nil {
				return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
			}
			*to = a
		}
		seconds, err := strconv.Atoi(f[8])
		if err != nil {
			return nil, fmt.Errorf("line %q: expires: %w", lines.Text(), err)
		}
		c.Expires = time.Duration(seconds) * time.Second
		conns = append(conns, c)
	}
	return conns, lines.Err()
}

func parseEndpoint(addr, port string) (netip.AddrPort, error) {
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	if strings.Contains(addr, ":") {
		a, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		return netip.AddrPortFrom(a, uint16(n)), err
	}
	b, err := hex.DecodeString(addr)
	if err != nil || len(b) != 4 {
		return netip.AddrPort{}, fmt.Errorf("address %q: want 8 hexadecimal digits", addr)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), uint16(n)), nil
}

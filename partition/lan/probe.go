package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// probes are how often an address is asked for: a frame may be lost.
const probes = 3

// Probe asks the LAN who has the addresses, as one does before taking one (RFC
// 5227 section 2.1, RFC 4862 section 5.4), and returns who answered within a
// time: of several the last. Nothing is changed.
func Probe(ctx context.Context, device string, addrs []netip.Addr, within time.Duration) (map[netip.Addr]net.HardwareAddr, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("lan: interface %q: %w", device, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("lan: interface %q is not Ethernet", device)
	}
	p := prober{own: [6]byte(ifi.HardwareAddr), found: map[netip.Addr]net.HardwareAddr{}}
	arp, err := openARP(ifi, p.own)
	if err != nil {
		return nil, fmt.Errorf("lan: %s: %w", device, err)
	}
	defer arp.Close()
	nd, err := openND(ifi)
	if err != nil {
		return nil, fmt.Errorf("lan: %s: %w", device, err)
	}
	defer nd.Close()
	for range probes {
		for _, a := range addrs {
			if err := p.ask(a, arp, nd); err != nil && !lost(err) {
				return nil, fmt.Errorf("lan: ask on %s: %w", device, err)
			}
		}
		end := time.Now().Add(within / probes)
		for _, from := range []*os.File{arp, nd} {
			if err := p.hear(ctx, from, end); err != nil {
				return nil, fmt.Errorf("lan: hear on %s: %w", device, err)
			}
			end = time.Now().Add(10 * time.Millisecond) // what came meanwhile waits in the socket
		}
	}
	return p.found, ctx.Err()
}

type prober struct {
	own   [6]byte
	found map[netip.Addr]net.HardwareAddr
}

func (p *prober) ask(a netip.Addr, arp, nd *os.File) error {
	if a.Is4() {
		q := arpPacket{op: opRequest, senderMAC: p.own, sender: netip.IPv4Unspecified(), target: a}
		_, err := arp.Write(q.appendFrame(nil, broadcast, p.own))
		return err
	}
	group := solicitedNode(a)
	q := ndPacket{kind: solicitation, src: unspecified, dst: group, target: a}
	// One that looks for duplicates has no option with its address.
	frame := q.appendFrame(nil, multicastMAC(group), p.own)[:ndOptions]
	frame[19] -= ndLen - ndOptions
	frame[56], frame[57] = 0, 0
	sum := icmpSum(frame)
	frame[56], frame[57] = byte(sum>>8), byte(sum)
	_, err := nd.Write(frame)
	return err
}

// hear notes answers until the end.
func (p *prober) hear(ctx context.Context, from *os.File, end time.Time) error {
	if err := from.SetReadDeadline(end); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return err
		}
		if a, err := parseARP(buf[:n]); err == nil && a.sender.IsValid() && !a.sender.IsUnspecified() {
			p.note(a.sender, a.senderMAC)
		}
		if a, err := parseND(buf[:n]); err == nil && a.kind == advertisement {
			p.note(a.target, a.mac)
		}
	}
	return nil
}

func (p *prober) note(a netip.Addr, mac [6]byte) {
	if mac != p.own && unicast(mac) {
		p.found[a] = bytes.Clone(mac[:])
	}
}

package ipvs

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

// procConns is the kernel's table with the origin of each entry, of the
// calling thread's network namespace.
const procConns = "/proc/thread-self/net/ip_vs_conn_sync"

// An Entry is a line of the kernel's connection table. Of the Connection it
// has the Key, Dest and State; flags, fwmark, sequence data and the state's
// full timeout are not shown by the kernel, persistence data not by this
// table.
type Entry struct {
	conntable.Connection
	Expires time.Duration // until the entry expires; 0 also if overdue
	Synced  bool          // made by a sync message, else by a packet here
	Torn    bool          // some of it may be older than the last read of ReadConns
}

// ReadConns calls fn with each entry of the kernel's connection table; fn must
// not keep the Entry. It is no snapshot: entries that come and go while it
// reads may be missed or told twice. Its cost grows with the square of the
// table (10,000 entries 0.4 s under emulation): for start-up and slow audits
// only. So pace, unless it is nil, is called before each read of some 60
// entries, and may wait, or end the reading with an error. The error is
// ErrNotSupported if the kernel has no IPVS.
func ReadConns(pace func() error, fn func(*Entry) error) error {
	f, err := os.Open(procConns)
	if err != nil {
		return named("read the connection table", err, nil)
	}
	defer f.Close()
	if err := (&pacedReader{r: f, pace: pace}).parse(fn); err != nil {
		return fmt.Errorf("%s: %w", procConns, err)
	}
	return nil
}

// A pacedReader asks before each read. The kernel goes on after as many entries
// as it told before, so where some of them went meanwhile, as many are passed
// over. Reads of random sizes see to it that these are others each time.
type pacedReader struct {
	r      io.Reader
	pace   func() error
	inLine bool // the last read ended within a line
	torn   bool // the next line is the rest of such a one
}

func (p *pacedReader) Read(b []byte) (int, error) {
	if p.pace != nil {
		if err := p.pace(); err != nil {
			return 0, err
		}
	}
	n, err := p.r.Read(b[:len(b)-rand.IntN(len(b)/2+1)])
	if n > 0 {
		p.torn = p.inLine
		p.inLine = b[n-1] != '\n'
	}
	return n, err
}

// parse is ParseConns that also says which entries are torn.
func (p *pacedReader) parse(fn func(*Entry) error) error {
	return ParseConns(p, func(e *Entry) error {
		e.Torn, p.torn = p.torn, false
		return fn(e)
	})
}

// ParseConns is ReadConns for a text in the format of
// /proc/net/ip_vs_conn_sync or /proc/net/ip_vs_conn (whose entries are all
// told as not synced).
func ParseConns(r io.Reader, fn func(*Entry) error) error {
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		if strings.HasPrefix(line, "Pro ") || line == "" {
			continue
		}
		var e Entry
		if err := e.parse(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
	return sc.Err()
}

// parse reads "Pro FromIP FPrt ToIP TPrt DestIP DPrt State [Origin] Expires
// [PEName PEData]" (ip_vs_conn.c, ip_vs_conn_seq_show).
func (e *Entry) parse(line string) error {
	f := strings.Fields(line)
	if len(f) < 9 {
		return fmt.Errorf("%d fields in %q", len(f), line)
	}
	var err error
	if e.Protocol, err = protocolNumber(f[0]); err != nil {
		return err
	}
	for i, to := range []*netip.AddrPort{&e.Client, &e.Virtual, &e.Dest} {
		if *to, err = tableAddr(f[1+2*i], f[2+2*i]); err != nil {
			return err
		}
	}
	e.Template = e.Client.Port() == 0 && (f[7] == "NONE" || f[7] == "ASSURED")
	if e.Template {
		e.Flags = conntable.FlagTemplate
	}
	if e.State, err = stateNumber(e.Protocol, e.Template, f[7]); err != nil {
		return err
	}
	expires := f[8]
	if expires == "SYNC" || expires == "LOCAL" {
		e.Synced = expires == "SYNC"
		if len(f) < 10 {
			return fmt.Errorf("no expiry in %q", line)
		}
		expires = f[9]
	}
	s, err := strconv.ParseUint(expires, 10, 64)
	if err != nil {
		return fmt.Errorf("expiry %q: %w", expires, err)
	}
	// An overdue timer shows as a small negative number in 32 bits of
	// seconds or in 64 bits of ticks: nothing real lasts that long.
	if s < 1<<31 {
		e.Expires = time.Duration(s) * time.Second
	}
	return nil
}

func tableAddr(addr, port string) (netip.AddrPort, error) {
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	if len(addr) == 8 && !strings.Contains(addr, ":") {
		b, err := hex.DecodeString(addr)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("address %q: %w", addr, err)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), uint16(p)), nil
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if !a.Is6() || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("address %q is neither 8 hex digits nor IPv6", addr)
	}
	return netip.AddrPortFrom(a, uint16(p)), nil
}

// protocolNumber is the inverse of ip_vs_proto_name (ip_vs_core.c).
func protocolNumber(name string) (uint8, error) {
	switch name {
	case "IP":
		return 0, nil
	case "TCP":
		return kernelsync.ProtoTCP, nil
	case "UDP":
		return kernelsync.ProtoUDP, nil
	case "SCTP":
		return kernelsync.ProtoSCTP, nil
	case "ESP":
		return kernelsync.ProtoESP, nil
	case "AH":
		return kernelsync.ProtoAH, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "IP_"), 10, 8)
	if err != nil || !strings.HasPrefix(name, "IP_") {
		return 0, fmt.Errorf("unknown protocol %q", name)
	}
	return uint8(n), nil
}

// States' names as the kernel prints them, by number (ip_vs_proto_tcp.c,
// ip_vs_proto_sctp.c, ip_vs_conn.c).
var (
	tcpStates = []string{
		"NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT",
		"CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK",
	}
	sctpStates = []string{
		"NONE", "INIT1", "INIT", "COOKIE_SENT", "COOKIE_REPLIED", "COOKIE_WAIT",
		"COOKIE", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT",
		"SHUTDOWN_RECEIVED", "SHUTDOWN_ACK_SENT", "REJECTED", "CLOSED",
	}
	udpStates      = []string{"UDP"}
	templateStates = []string{"NONE", "ASSURED"}
)

func stateNames(proto uint8, template bool) []string {
	switch {
	case template:
		return templateStates
	case proto == kernelsync.ProtoTCP:
		return tcpStates
	case proto == kernelsync.ProtoSCTP:
		return sctpStates
	case proto == kernelsync.ProtoUDP:
		return udpStates
	}
	return nil
}

// StateName returns the kernel's name for a state, as ipvsadm prints it;
// "ERR!" where it has none.
func StateName(proto uint8, template bool, state uint16) string {
	names := stateNames(proto, template)
	if int(state) < len(names) {
		return names[state]
	}
	return "ERR!"
}

// StateNames are all names of states that StateName returns.
func StateNames() []string {
	all := slices.Concat(tcpStates, udpStates, sctpStates, templateStates)
	slices.Sort(all)
	return slices.Compact(all)
}

func stateNumber(proto uint8, template bool, name string) (uint16, error) {
	names := stateNames(proto, template)
	if i := slices.Index(names, name); i >= 0 {
		return uint16(i), nil
	}
	if names == nil {
		return 0, nil // AH and ESP have one state, without a name
	}
	return 0, fmt.Errorf("protocol %d has no state %q", proto, name)
}

package syncd

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/testnet"
	"saru/ipvs/usersync"
)

// The mix: all kinds of connections that a stock kernel makes, through ten
// failovers and a restart of each syncd, compared field by field between the
// two kernels.

const (
	testVIP6 = "fd97:1::100"
	atVIP6   = "[" + testVIP6 + "]"
	natHost  = "10.97.0.104" // as long as the VIP in an FTP answer, see docs/operating.md
	natFrom  = "10.98.0.3"   // the client whose packets are masqueraded
)

// A mixLAN is a realLAN with services of every kind.
type mixLAN struct {
	*realLAN
	rnd   *rand.Rand
	lacks map[string]bool // kinds that this kernel cannot have
	flows []*mixFlow
}

type mixFlow struct {
	kind string
	conn net.Conn
	say  func(i int) string
}

func newMixLAN(t *testing.T, seed uint64) *mixLAN {
	l := &mixLAN{realLAN: newRealLAN(t), rnd: rand.New(rand.NewPCG(seed, 1)), lacks: map[string]bool{}}
	l.more = "[kernel]\nsource = \"daemon\"\n" // as without the module, which is loaded to look only
	for _, m := range []string{"ip_vs_pe_sip", "ip_vs_ftp", "sctp", "ipip", "ip6_tunnel"} {
		if err := exec.Command("modprobe", m).Run(); err != nil {
			t.Logf("without %s: %v", m, err)
			l.lacks[m] = true
		}
	}
	for _, i := range []int{0, 1, nodeClient, nodeServer} {
		l.run(i, "ip", "-6", "addr", "add", fmt.Sprintf("fd97::%d/64", i+1), "dev", "eth0", "nodad")
	}
	for _, i := range []int{0, 1, nodeServer} {
		l.run(i, "ip", "-6", "addr", "add", testVIP6+"/128", "dev", "lo", "nodad")
	}
	l.run(nodeServer, "ip", "addr", "add", "10.97.0.5/24", "dev", "eth0")
	l.run(nodeServer, "ip", "-6", "addr", "add", "fd97::5/64", "dev", "eth0", "nodad")
	l.run(nodeServer, "ip", "addr", "add", natHost+"/24", "dev", "eth0")
	l.run(nodeClient, "ip", "addr", "add", natFrom+"/32", "dev", "lo")
	l.unpack("ipip", "tunl0")
	l.unpack("ip6_tunnel", "ip6tnl0")
	for i := range 2 {
		l.services(i)
	}
	l.listen("tcp4", testVIP, "80", "81", "82", "83")
	l.listen("tcp6", testVIP6, "80", "81", "82", "83")
	l.listen("udp4", testVIP, "53", "500", "5060")
	l.listen("udp6", testVIP6, "53")
	l.echo("ip4:esp", testVIP)
	l.echo("ip4:51", testVIP) // AH
	l.listenSCTP(testVIP)
	l.listenSCTP(testVIP6)
	l.listen("tcp4", natHost, "21", "2020")
	return l
}

// unpack lets the server take what comes through tunnels.
func (l *mixLAN) unpack(module, device string) {
	if !l.lacks[module] {
		l.run(nodeServer, "ip", "link", "set", device, "up")
		// The answers do not go back through it.
		l.run(nodeServer, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf."+device+".rp_filter=0")
	}
}

func (l *mixLAN) services(i int) {
	// Without be_liberal conntrack drops what comes back to a director that
	// has not seen what passed the other meanwhile.
	l.run(i, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.vs.conntrack=1", "net.netfilter.nf_conntrack_tcp_be_liberal=1",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
	l.run(i, "ip", "route", "add", natFrom+"/32", "via", "10.97.0.3")
	l.run(i, "nft", "add table inet mix; add chain inet mix pre { type filter hook prerouting priority mangle; };"+
		" add rule inet mix pre ip daddr "+testVIP+" tcp dport 82 meta mark set 7;"+
		" add rule inet mix pre ip6 daddr "+testVIP6+" tcp dport 82 meta mark set 7")
	v4, v6 := []string{"10.97.0.4", "10.97.0.5"}, []string{"[fd97::4]", "[fd97::5]"}
	for _, s := range []struct {
		service, options string
		servers          []string
		port, method     string
		needs            string
	}{
		{"-t " + testVIP + ":81", "-p 300", v4, ":81", "-g", ""},
		{"-t " + atVIP6 + ":81", "-p 300", v6, ":81", "-g", ""},
		{"-f 7", "-p 300", v4, ":0", "-g", ""},
		{"-f 7 -6", "-p 300", v6, ":0", "-g", ""},
		{"-t " + testVIP + ":83", "", v4, ":83", "-i", "ipip"},
		{"-t " + atVIP6 + ":83", "", v6, ":83", "-i", "ip6_tunnel"},
		{"-t " + atVIP6 + ":80", "", v6, ":80", "-g", ""},
		{"-u " + testVIP + ":53", "", v4, ":53", "-g", ""},
		{"-u " + atVIP6 + ":53", "", v6, ":53", "-g", ""},
		{"-u " + testVIP + ":500", "", v4, ":500", "-g", ""},
		{"-u " + testVIP + ":5060", "-p 300 --pe sip", v4, ":5060", "-g", "ip_vs_pe_sip"},
		{"--sctp-service " + testVIP + ":9", "", v4, ":9", "-g", "sctp"},
		{"--sctp-service " + atVIP6 + ":9", "", v6, ":9", "-g", "sctp"},
		{"-t " + testVIP + ":21", "", []string{natHost}, ":21", "-m", ""},
	} {
		if l.lacks[s.needs] {
			continue
		}
		l.run(i, strings.Fields("ipvsadm -A "+s.service+" -s rr "+s.options)...)
		for _, server := range s.servers {
			l.run(i, strings.Fields("ipvsadm -a "+s.service+" -r "+server+s.port+" "+s.method)...)
		}
	}
	l.before[i] = l.run(i, "sysctl", "net.ipv4.vs")
}

// listen echoes on the server. A TCP client that says PASV is answered as FTP
// does, one that says RST is reset.
func (l *mixLAN) listen(network, addr string, ports ...string) {
	for _, port := range ports {
		at := net.JoinHostPort(addr, port)
		if strings.HasPrefix(network, "udp") {
			l.echo(network, at)
			continue
		}
		var ln net.Listener
		must(l.t, testnet.Within(l.Nodes[nodeServer], func() (err error) { ln, err = quiet.Listen(l.t.Context(), network, at); return err }))
		l.answerAll(ln)
	}
}

func (l *mixLAN) answerAll(ln net.Listener) {
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
}

// echo sends back packets on the server.
func (l *mixLAN) echo(network, at string) {
	var pc net.PacketConn
	must(l.t, testnet.Within(l.Nodes[nodeServer], func() (err error) { pc, err = net.ListenPacket(network, at); return err }))
	l.t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
}

// quiet listens without keepalives, which would be packets that nobody sent.
var quiet = net.ListenConfig{KeepAlive: -1}

func answer(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.HasPrefix(line, "PASV"):
			line = "227 Entering Passive Mode (" + strings.ReplaceAll(natHost, ".", ",") + ",7,228).\r\n" // 2020
		case strings.HasPrefix(line, "RST"):
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		if _, err := io.WriteString(c, line); err != nil {
			return
		}
	}
}

// via makes client and server send through director i.
func (l *mixLAN) via(i int) {
	l.realLAN.via(i)
	l.run(nodeClient, "ip", "-6", "route", "replace", testVIP6+"/128", "via", fmt.Sprintf("fd97::%d", i+1))
	l.run(nodeServer, "ip", "route", "replace", natFrom+"/32", "via", fmt.Sprintf("10.97.0.%d", i+1))
}

func (l *mixLAN) open(kind, network, from, to string) *mixFlow {
	l.t.Helper()
	d := net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	return l.flow(kind, d, network, to, nil)
}

// flow opens one, and says the first line; nil is one of its kind.
func (l *mixLAN) flow(kind string, d net.Dialer, network, to string, say func(i int) string) *mixFlow {
	l.t.Helper()
	return l.add(kind, say, func() (net.Conn, error) { return d.Dial(network, to) })
}

// add opens a flow as it is told, on the client.
func (l *mixLAN) add(kind string, say func(i int) string, open func() (net.Conn, error)) *mixFlow {
	l.t.Helper()
	f := &mixFlow{kind: kind, say: say}
	if say == nil {
		f.say = func(i int) string { return fmt.Sprintf("%s %d\n", kind, i) }
	}
	if err := testnet.Within(l.Nodes[nodeClient], func() (err error) { f.conn, err = open(); return err }); err != nil {
		l.t.Fatalf("%s: %v", kind, err)
	}
	l.t.Cleanup(func() { f.conn.Close() })
	l.flows = append(l.flows, f)
	f.speak(l.t, 0)
	return f
}

// speak says a line and waits for its echo.
func (f *mixFlow) speak(t *testing.T, i int) {
	t.Helper()
	line := f.say(i)
	f.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(f.conn, line); err != nil {
		t.Errorf("%s, %v: %v", f.kind, f.conn.LocalAddr(), err)
		return
	}
	const head = 60 // that an IP packet may have, and that ReadFrom takes off
	got := make([]byte, len(line)+head)
	n, err := 0, error(nil)
	if c, ok := f.conn.(*net.IPConn); ok {
		n, _, err = c.ReadFrom(got)
	} else {
		n, err = io.ReadFull(f.conn, got[:len(line)])
	}
	if err != nil || string(got[:n]) != line {
		t.Errorf("%s, %v: said %q, heard %q, %v", f.kind, f.conn.LocalAddr(), line, got[:n], err)
	}
}

// kinds are what the mix is drawn from, each a way to open one.
func (l *mixLAN) kinds() []func() {
	var all []func()
	for _, k := range []struct{ kind, network, to, needs string }{
		{"TCP", "tcp4", testVIP + ":80", ""},
		{"persistent", "tcp4", testVIP + ":81", ""},
		{"marked", "tcp4", testVIP + ":82", ""},
		{"tunnelled", "tcp4", testVIP + ":83", "ipip"},
		{"UDP", "udp4", testVIP + ":53", ""},
		{"IPv6", "tcp6", atVIP6 + ":80", ""},
		{"persistent IPv6", "tcp6", atVIP6 + ":81", ""},
		{"marked IPv6", "tcp6", atVIP6 + ":82", ""},
		{"tunnelled IPv6", "tcp6", atVIP6 + ":83", "ip6_tunnel"},
		{"UDP IPv6", "udp6", atVIP6 + ":53", ""},
	} {
		if !l.lacks[k.needs] {
			all = append(all, func() { l.open(k.kind, k.network, "", k.to) })
		}
	}
	if !l.lacks["sctp"] {
		all = append(all, func() { l.sctp("10.97.0.3", testVIP) }, func() { l.sctp("fd97::3", testVIP6) })
	}
	if !l.lacks["ip_vs_pe_sip"] {
		all = append(all, l.sip)
	}
	return all
}

// mix opens n flows: one of each kind, then more, in any order.
func (l *mixLAN) mix(n int) {
	kinds := l.kinds()
	for _, i := range l.rnd.Perm(n) {
		if i >= len(kinds) {
			i = l.rnd.IntN(len(kinds))
		}
		kinds[i]()
	}
}

// another opens a flow of some kind.
func (l *mixLAN) another() {
	kinds := l.kinds()
	kinds[l.rnd.IntN(len(kinds))]()
}

// sip opens a call. Its first packet must be SIP: what it says decides its
// template.
func (l *mixLAN) sip() {
	id := l.rnd.Uint32()
	l.flow("SIP", net.Dialer{}, "udp4", testVIP+":5060", func(i int) string {
		return fmt.Sprintf("OPTIONS sip:a@b SIP/2.0\r\nCall-ID: %010d@mix\r\nCSeq: %d OPTIONS\r\n\r\n", id, i)
	})
}

// ftp opens a control connection, and the data connection that the server's
// answer to PASV names.
func (l *mixLAN) ftp() {
	control := l.open("FTP", "tcp4", natFrom, testVIP+":21")
	if l.lacks["ip_vs_ftp"] {
		return
	}
	io.WriteString(control.conn, "PASV\r\n")
	line, err := bufio.NewReader(control.conn).ReadString('\n')
	vip := strings.ReplaceAll(testVIP, ".", ",")
	if err != nil || !strings.Contains(line, vip+",7,228") {
		l.t.Fatalf("the answer to PASV is %q, %v; want it to name %s", line, err, testVIP)
	}
	l.open("FTP data", "tcp4", natFrom, testVIP+":2020")
}

// A row is an entry as /proc/net/ip_vs_conn shows it.
type row struct {
	what    string // all but when it expires
	expires int    // in seconds
}

// rows returns director i's entries by client, virtual address and protocol, and
// when they were read: at once, whatever else the machine does.
func (l *mixLAN) rows(i int) (map[string]row, time.Time) {
	l.t.Helper()
	var text []byte
	must(l.t, testnet.Within(l.Nodes[i], func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		return err
	}))
	at := time.Now()
	out := map[string]row{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] == "Pro" || strings.HasPrefix(f[1], "7F51") {
			continue // the head, or the heartbeat's
		}
		n, err := strconv.Atoi(f[8])
		must(l.t, err)
		key := strings.Join(f[:5], " ")
		if len(f) > 9 { // of the templates of an engine there are many
			key += " " + strings.Join(f[9:], " ")
		}
		out[key] = row{strings.Join(append(slices.Clone(f[5:8]), f[9:]...), " "), n}
	}
	return out, at
}

// listed returns what ipvsadm lists on director i, as rows does.
func (l *mixLAN) listed(i int) map[string]row {
	l.t.Helper()
	out := map[string]row{}
	for line := range strings.Lines(l.run(i, "ipvsadm", "-Lnc")) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] == "pro" || strings.HasPrefix(f[3], "127.81.") {
			continue // the head, or the heartbeat's
		}
		var minutes, seconds int
		if _, err := fmt.Sscanf(f[1], "%d:%d", &minutes, &seconds); err != nil {
			l.t.Fatalf("%q: %v", line, err)
		}
		key := strings.Join(append([]string{f[0], f[3], f[4]}, f[6:]...), " ")
		out[key] = row{strings.Join(append([]string{f[5], f[2]}, f[6:]...), " "), 60*minutes + seconds}
	}
	return out
}

// ftpData is where the server's answer to PASV leads, by way of the director.
var ftpData = netip.MustParseAddrPort(testVIP + ":2020")

// inside returns what the module tells of director i's entries, of which /proc
// does not show the flags, how they forward, the mark, sequence numbers, and
// whether they are of a real server.
func (l *mixLAN) inside(i int) map[string]row {
	l.t.Helper()
	out := map[string]row{}
	for _, r := range l.entries(i, usersync.Filter{}) {
		if r.Client.Addr().IsLoopback() {
			continue // the heartbeat's
		}
		var seq conntable.SeqPair
		if r.Seq != nil {
			seq = *r.Seq
		}
		// The kernel finds no real server for a masqueraded data connection that
		// comes by sync, since that is not of the service's port (ip_vs_find_dest).
		bound := r.Bound || r.Virtual == ftpData
		key := fmt.Sprintf("%+v %q %q", r.Key, r.PEName, r.PEData)
		out[key] = row{fmt.Sprintf("to %v, bound %t, flags %#x, mark %d, sequence %+v",
			r.Dest, bound, r.Flags&conntable.FlagBackupMask, r.FWMark, seq), int(r.Remaining.Seconds())}
	}
	return out
}

// differ says how the peer's table differs from the owner's. What talked a
// moment ago may expire up to half of its time earlier there (refresh.go).
func differ(owner, peer map[string]row, within func(owner, peer int) bool) (out []string) {
	for key, o := range owner {
		p, ok := peer[key]
		switch {
		case o.expires <= 3:
		case !ok:
			out = append(out, fmt.Sprintf("%s: missing, the owner has %+v", key, o))
		case p.what != o.what || !templatesLater(o.what, within)(o.expires, p.expires):
			out = append(out, fmt.Sprintf("%s: %+v, the owner has %+v", key, p, o))
		}
	}
	for key, p := range peer {
		if _, ok := owner[key]; !ok && p.expires > 3 {
			out = append(out, fmt.Sprintf("%s: %+v, the owner has none", key, p))
		}
	}
	slices.Sort(out)
	return out
}

func halfOrMore(owner, peer int) bool { return peer >= owner/2-3 && owner >= peer/2-3 }

func atAnyTime(owner, peer int) bool { return true }

func toTheSecond(owner, peer int) bool { return max(owner-peer, peer-owner) <= 2 }

// templatesLater is for templates, which a peer is told with their whole
// timeout, and which it deletes when the mirror's is over.
func templatesLater(what string, within func(owner, peer int) bool) func(owner, peer int) bool {
	return func(owner, peer int) bool {
		template := strings.HasSuffix(what, " NONE") || strings.HasSuffix(what, " ASSURED") || strings.Contains(what, " NONE sip")
		return within(owner, peer) || template && peer > owner
	}
}

// same waits until the kernels agree.
func (l *mixLAN) same(when string, within func(owner, peer int) bool) {
	l.t.Helper()
	inside := moduleBuilt()
	if inside {
		loadModule(l.t)
		defer unloadModule(l.t)
	} else {
		l.t.Log("no module for this kernel: what /proc does not show is not compared")
	}
	var diff []string
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(200 * time.Millisecond) {
		owner, then := l.rows(0)
		peer, now := l.rows(1)
		later := int(now.Sub(then).Round(time.Second) / time.Second)
		diff = differ(owner, peer, func(owner, peer int) bool { return within(owner, peer+later) })
		// ipvsadm takes its time to start, so its seconds are not compared.
		diff = append(diff, differ(l.listed(0), l.listed(1), halfOrMore)...)
		if len(diff) == 0 && inside {
			diff = differ(l.inside(0), l.inside(1), atAnyTime)
		}
		if len(diff) == 0 {
			l.t.Logf("%s, the kernels agree on %d entries", when, len(owner))
			return
		}
	}
	l.t.Errorf("%s, the kernels differ:\n%s", when, strings.Join(diff, "\n"))
}

func TestMixedConnectionsOutliveTenFailovers(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := newMixLAN(t, seed)
	l.via(0)
	for i := range 2 {
		l.start(i)
		l.synced(i)
	}
	l.mix(18)
	l.ftp()
	l.ipsec()
	l.same("quiet after the first packets", toTheSecond)
	for round := 1; round <= 10; round++ {
		time.Sleep(100 * time.Millisecond) // a record's way to the peer's kernel
		l.via(round % 2)
		for _, f := range l.flows {
			f.speak(t, round)
		}
		l.another()
		if at := l.rnd.IntN(len(l.flows)); l.flows[at].kind == "TCP" {
			l.flows[at].conn.Close()
			l.flows = slices.Delete(l.flows, at, at+1)
		}
		if i := round - 5; i == 0 || i == 1 { // of the director that serves, and of the other
			l.stop(i)
			l.start(i)
			testnet.Await(t, fmt.Sprintf("d%d synced again", i+1), func() bool { return l.status(i).Synced })
		}
		if t.Failed() {
			break
		}
	}
	l.same("after ten failovers", halfOrMore)
	l.reset()
	for i := range 2 {
		st := l.status(i)
		var text strings.Builder
		must(t, st.Print(&text))
		t.Logf("status of %s", text.String())
		if st.Kernel.Drops != 0 || st.Degraded != "" || st.Templates.Conflicts != 0 {
			t.Errorf("d%d: %+v %+v %q", i+1, st.Kernel, st.Templates, st.Degraded)
		}
	}
}

// reset has a masqueraded server reset a connection, which the kernel tells
// nobody.
func (l *mixLAN) reset() {
	l.via(0)
	f := l.open("reset", "tcp4", natFrom, testVIP+":21")
	port := fmt.Sprintf("%04X", f.conn.LocalAddr().(*net.TCPAddr).Port)
	state := func(i int) string {
		rows, _ := l.rows(i)
		for key, r := range rows {
			if strings.HasPrefix(key, "TCP") && strings.Fields(key)[2] == port {
				return r.what
			}
		}
		return "gone"
	}
	testnet.Await(l.t, "the peer has it", func() bool { return strings.Contains(state(1), "ESTABLISHED") })
	io.WriteString(f.conn, "RST\n")
	if _, err := f.conn.Read(make([]byte, 1)); err == nil {
		l.t.Error("the connection was not reset")
	}
	if s := state(0); !strings.Contains(s, "CLOSE") {
		l.t.Errorf("the owner's kernel has %s", s)
	}
	testnet.Await(l.t, "the peer knows that it was reset", func() bool { return !strings.Contains(state(1), "ESTABLISHED") })
	l.flows = slices.DeleteFunc(l.flows, func(x *mixFlow) bool { return x == f })
}

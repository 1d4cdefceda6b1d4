package syncd

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/internal/testnet"
)

// The mix: all kinds of connections that a stock kernel makes, through ten
// failovers and a restart of each syncd, compared field by field between the
// two kernels.

const (
	testVIP6 = "fd97:1::100"
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
	for _, m := range []string{"ip_vs_pe_sip", "ip_vs_ftp", "sctp"} {
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
	l.run(nodeServer, "ip", "addr", "add", natHost+"/24", "dev", "eth0")
	l.run(nodeClient, "ip", "addr", "add", natFrom+"/32", "dev", "lo")
	for i := range 2 {
		l.services(i)
	}
	l.listen("tcp4", testVIP, "80", "81", "82")
	l.listen("tcp6", testVIP6, "80")
	l.listen("udp4", testVIP, "53", "500", "5060")
	l.echo("ip4:esp", testVIP)
	l.echo("ip4:51", testVIP) // AH
	l.listenSCTP()
	l.listen("tcp4", natHost, "21", "2020")
	return l
}

func (l *mixLAN) services(i int) {
	// Without be_liberal conntrack drops what comes back to a director that
	// has not seen what passed the other meanwhile.
	l.run(i, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.vs.conntrack=1", "net.netfilter.nf_conntrack_tcp_be_liberal=1",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
	l.run(i, "ip", "route", "add", natFrom+"/32", "via", "10.97.0.3")
	l.run(i, "nft", "add table ip mix; add chain ip mix pre { type filter hook prerouting priority mangle; };"+
		" add rule ip mix pre ip daddr "+testVIP+" tcp dport 82 meta mark set 7")
	add := func(args ...string) { l.run(i, append([]string{"ipvsadm"}, args...)...) }
	add("-A", "-t", testVIP+":81", "-s", "rr", "-p", "300")
	add("-A", "-f", "7", "-s", "rr", "-p", "300")
	add("-A", "-u", testVIP+":53", "-s", "rr")
	add("-A", "-u", testVIP+":500", "-s", "rr")
	add("-A", "-t", "["+testVIP6+"]:80", "-s", "rr")
	add("-a", "-t", "["+testVIP6+"]:80", "-r", "[fd97::4]:80", "-g")
	for _, server := range []string{"10.97.0.4", "10.97.0.5"} {
		add("-a", "-t", testVIP+":81", "-r", server+":81", "-g")
		add("-a", "-f", "7", "-r", server, "-g")
		add("-a", "-u", testVIP+":53", "-r", server+":53", "-g")
		add("-a", "-u", testVIP+":500", "-r", server+":500", "-g")
	}
	if !l.lacks["sctp"] {
		add("-A", "--sctp-service", testVIP+":9", "-s", "rr")
		add("-a", "--sctp-service", testVIP+":9", "-r", "10.97.0.4:9", "-g")
		add("-a", "--sctp-service", testVIP+":9", "-r", "10.97.0.5:9", "-g")
	}
	if !l.lacks["ip_vs_pe_sip"] {
		add("-A", "-u", testVIP+":5060", "-s", "rr", "-p", "300", "--pe", "sip")
		add("-a", "-u", testVIP+":5060", "-r", "10.97.0.4:5060", "-g")
		add("-a", "-u", testVIP+":5060", "-r", "10.97.0.5:5060", "-g")
	}
	add("-A", "-t", testVIP+":21", "-s", "rr")
	add("-a", "-t", testVIP+":21", "-r", natHost+":21", "-m")
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

// more opens a flow of some kind.
func (l *mixLAN) more() {
	switch n := l.rnd.IntN(7); n {
	case 0:
		l.open("TCP", "tcp4", "", testVIP+":80")
	case 1:
		l.open("persistent", "tcp4", "", testVIP+":81")
	case 2:
		l.open("marked", "tcp4", "", testVIP+":82")
	case 3:
		l.open("UDP", "udp4", "", testVIP+":53")
	case 4:
		l.open("IPv6", "tcp6", "", "["+testVIP6+"]:80")
	case 5:
		l.sctp()
	case 6:
		if l.lacks["ip_vs_pe_sip"] {
			return
		}
		// Its first packet must be SIP: what it says decides its template.
		id := l.rnd.Uint32()
		l.flow("SIP", net.Dialer{}, "udp4", testVIP+":5060", func(i int) string {
			return fmt.Sprintf("OPTIONS sip:a@b SIP/2.0\r\nCall-ID: %010d@mix\r\nCSeq: %d OPTIONS\r\n\r\n", id, i)
		})
	}
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
	var diff []string
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(200 * time.Millisecond) {
		owner, then := l.rows(0)
		peer, now := l.rows(1)
		later := int(now.Sub(then).Round(time.Second) / time.Second)
		diff = differ(owner, peer, func(owner, peer int) bool { return within(owner, peer+later) })
		// ipvsadm takes its time to start, so its seconds are not compared.
		diff = append(diff, differ(l.listed(0), l.listed(1), halfOrMore)...)
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
	for range 18 {
		l.more()
	}
	l.ftp()
	l.ipsec()
	l.sctp()
	l.same("quiet after the first packets", toTheSecond)
	for round := 1; round <= 10; round++ {
		time.Sleep(100 * time.Millisecond) // a record's way to the peer's kernel
		l.via(round % 2)
		for _, f := range l.flows {
			f.speak(t, round)
		}
		l.more()
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

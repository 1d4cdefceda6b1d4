package syncd

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/metrics"
	"saru/ipvs"
	"saru/syncproto/peer/peertest"
)

func TestConnsAreToldAsIpvsadmDoes(t *testing.T) {
	for _, c := range []struct {
		conn Conn
		want string
	}{
		{
			Conn{Protocol: "TCP", State: "ESTABLISHED", ExpireS: 899.6, Client: "10.9.0.1:49808", Virtual: "10.9.0.100:80", Dest: "10.9.0.21:80"},
			"TCP 15:00  ESTABLISHED 10.9.0.1:49808     10.9.0.100:80      10.9.0.21:80\n",
		},
		{
			Conn{Protocol: "UDP", State: "UDP", ExpireS: 61, Client: "10.9.0.1:53", Virtual: "10.9.0.100:53", Dest: "10.9.0.21:53"},
			"UDP 01:01  UDP         10.9.0.1:53        10.9.0.100:53      10.9.0.21:53\n",
		},
		{
			Conn{Protocol: "UDP", State: "NONE", ExpireS: 300, Client: "10.9.0.1:0", Virtual: "10.9.0.100:5060", Dest: "10.9.0.21:0", PEName: "sip", PEData: "a84b4c@10.9.0.1"},
			"UDP 05:00  NONE        10.9.0.1:0         10.9.0.100:5060    10.9.0.21:0      sip                a84b4c@10.9.0.1\n",
		},
	} {
		var b strings.Builder
		must(t, c.conn.Print(&b))
		if b.String() != c.want {
			t.Errorf("got  %q\nwant %q", b.String(), c.want)
		}
	}
}

func TestControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, peertest.New(1), 1, newFakeKernel())
		time.Sleep(3 * time.Second)
		for i := range 10 {
			n.capture(tcp(i, established, 900*time.Second))
		}
		udp := tcp(10, 0, 300*time.Second)
		udp.Protocol = 17
		n.capture(udp)
		ask := func(method, path string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), method, path, nil))
			return w
		}
		var st map[string]any
		must(t, json.Unmarshal(ask("GET", "/status").Body.Bytes(), &st))
		if st["node"] != "d1" || st["synced"] != true || st["source"] != "fake" || st["connections"].(map[string]any)["mirror"] != 11.0 {
			t.Errorf("status %v", st)
		}
		for _, key := range []string{"peers", "kernel"} {
			if st[key] == nil {
				t.Errorf("status has no %s", key)
			}
		}
		for query, want := range map[string]int{
			"": 11, "proto=udp": 1, "proto=6": 10, "dest=192.168.6.11": 5, "dest=192.168.6.0/24": 11, "virtual=10.9.0.100:80&proto=tcp": 10,
			"client=" + tcp(3, 0, 0).Client.String(): 1, "client=10.200.0.1": 0,
			"state=established": 10, "state=FIN_WAIT": 0, "owner=owned": 11, "owner=foreign": 0, "limit=3": 3, "limit=0": 11,
		} {
			w := ask("GET", "/conns?"+query)
			if got := strings.Count(w.Body.String(), "\n"); got != want {
				t.Errorf("/conns?%s: %d connections, want %d", query, got, want)
			}
		}
		if w := ask("GET", "/conns?proto=ipx"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"ipx"`) {
			t.Errorf("a bad filter: %d %s", w.Code, w.Body)
		}
		for _, bad := range []string{"owner=me", "limit=-1"} {
			if w := ask("GET", "/conns?"+bad); w.Code != http.StatusBadRequest {
				t.Errorf("%s: %d %s", bad, w.Code, w.Body)
			}
		}
		if w := ask("POST", "/resync"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"peers": 0`) {
			t.Errorf("resync alone: %d %s", w.Code, w.Body)
		}
		w := httptest.NewRecorder()
		metrics.Handler("syncd", n.Scrape).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, want := range []string{"\nsyncd_mirror_connections 11\n", "# TYPE syncd_drops_total counter\n", `syncd_records_total{outcome="added"} 0`, `syncd_owned_connections{kind="active"} 11`} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("metrics lack %q", want)
			}
		}
		var b strings.Builder
		human := n.Status()
		must(t, human.Print(&b))
		if !strings.Contains(b.String(), "d1: synced, and alone: no peer was heard\n") || !strings.Contains(b.String(), "11 in the mirror") {
			t.Errorf("status for people:\n%s", b.String())
		}
	})
}

func TestCrowdedKernelTableIsTold(t *testing.T) {
	for _, c := range []struct {
		counts ConnectionCounts
		want   bool
	}{
		{ConnectionCounts{Mirror: 8192, Buckets: 4096}, false},
		{ConnectionCounts{Mirror: 8193, Buckets: 4096}, true},
		{ConnectionCounts{Kernel: 8193, Buckets: 4096}, true},
		{ConnectionCounts{Mirror: 8193}, false}, // not known
	} {
		if got := c.counts.crowded(); (got != "") != c.want {
			t.Errorf("%+v: %q", c.counts, got)
		}
	}
}

func TestFilterOfBadAddresses(t *testing.T) {
	for _, q := range []string{"client=10.0.0", "virtual=10.0.0.1:http", "dest=web", "proto=300"} {
		v, err := url.ParseQuery(q)
		must(t, err)
		_, err = ParseFilter(v)
		wantBad(t, err, strings.SplitN(q, "=", 2)[1])
	}
}

func TestTimeoutsOfFoundEntries(t *testing.T) {
	k := &known{
		forward: map[Target]uint32{{Virtual: vip, Protocol: 6, Dest: realA}: conntable.FlagFwdMasq},
		marks:   map[netip.AddrPort]uint32{realB: 5},

		timeouts: ipvs.Timeouts{TCP: 800 * time.Second, TCPFin: 110 * time.Second, UDP: 200 * time.Second},
	}
	c := conntable.Connection{Key: conntable.Key{Virtual: vip, Protocol: 6}, Dest: realA, State: finWait}
	k.complete(&c)
	if c.Timeout != 110*time.Second || c.FWMark != 0 || c.Flags != conntable.FlagFwdMasq|conntable.FlagInactive {
		t.Errorf("%+v", c)
	}
	unknown := conntable.Connection{Key: conntable.Key{Virtual: vip, Protocol: 17}, Dest: realB}
	k.complete(&unknown)
	if unknown.Timeout != 200*time.Second || unknown.FWMark != 5 || unknown.Flags != conntable.FlagFwdGate|conntable.FlagInactive {
		t.Errorf("%+v", unknown)
	}
}

// /proc does not show marks.
func TestMarksOfFoundEntries(t *testing.T) {
	anyPort := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }
	allPorts := netip.MustParseAddr("10.9.0.101")
	k := &known{
		forward: map[Target]uint32{
			{Virtual: vip, Protocol: 6, Dest: realA}:                               conntable.FlagFwdGate,
			{Virtual: anyPort(allPorts), Protocol: 6, Dest: anyPort(realA.Addr())}: conntable.FlagFwdGate,
		},
		marks: map[netip.AddrPort]uint32{anyPort(realA.Addr()): 5, realB: 7},
	}
	for _, tt := range []struct {
		name          string
		virtual, dest string
		want          uint32
	}{
		{"of a service without a mark", vip.String(), realA.String(), 0},
		{"at a real server on whatever port is called", "10.9.0.102:99", "192.168.6.10:99", 5},
		{"at one that translates the port", "10.9.0.102:99", "192.168.6.10:80", 0},
		{"of a service of all ports", "10.9.0.101:99", "192.168.6.10:99", 0},
		{"at a real server on a port", "10.9.0.102:99", realB.String(), 7},
		{"at another port of it", "10.9.0.102:99", "192.168.6.11:99", 0},
	} {
		c := conntable.Connection{Key: conntable.Key{Virtual: netip.MustParseAddrPort(tt.virtual), Protocol: 6}, Dest: netip.MustParseAddrPort(tt.dest)}
		if k.complete(&c); c.FWMark != tt.want {
			t.Errorf("a connection %s: mark %d, want %d", tt.name, c.FWMark, tt.want)
		}
	}
}

// The kernel counts every entry as inactive but some of TCP and SCTP, and so
// must the peers' kernels, who take the flag from what they are told.
func TestActivityOfFoundEntries(t *testing.T) {
	for _, tt := range []struct {
		protocol uint8
		state    uint16
		template bool
		active   bool
	}{
		{6, tcpEstablished, false, true},
		{6, tcpSynRecv, false, true},
		{6, finWait, false, false},
		{6, 0, true, false},
		{6, 1, true, false}, // a template that is assured
		{17, 0, false, false},
		{132, sctpEstablished, false, true},
		{132, sctpEstablished + 1, false, false},
		{50, 0, false, false},
	} {
		c := conntable.Connection{Key: conntable.Key{Virtual: vip, Protocol: tt.protocol, Template: tt.template}, Dest: realA, State: tt.state}
		(&known{}).complete(&c)
		if got := c.Flags&conntable.FlagInactive == 0; got != tt.active {
			t.Errorf("%+v: active %t", tt, got)
		}
	}
}

// Each template gets the timeout of its own service, of which the kernel keeps
// protocol, address and port, or the mark.
func TestTimeoutsOfFoundTemplates(t *testing.T) {
	k := &known{
		byDest:  map[netip.Addr]uint32{realA.Addr(): conntable.FlagFwdMasq},
		persist: map[conntable.Key]time.Duration{}, engines: map[conntable.Key]bool{},
	}
	const tcp, udp = 6, 17
	service := func(addr string, protocol uint8, timeout uint32) ipvs.Service {
		return ipvs.Service{Addr: netip.MustParseAddrPort(addr), Protocol: protocol, Flags: ipvs.ServicePersistent, Timeout: timeout}
	}
	marked := func(family uint16, mark, timeout uint32) ipvs.Service {
		return ipvs.Service{Family: family, FWMark: mark, Flags: ipvs.ServicePersistent, Timeout: timeout}
	}
	fleeting := service("10.9.0.100:82", tcp, 1)
	fleeting.Flags = 0
	for _, s := range []ipvs.Service{
		service("10.9.0.100:80", tcp, 100), service("10.9.0.100:81", tcp, 200), service("10.9.0.100:80", udp, 300), fleeting,
		service("10.9.0.101:21", tcp, 400), service("10.9.0.102:0", tcp, 500),
		service("10.9.0.103:21", tcp, 600), service("10.9.0.103:0", tcp, 700), // one template for both
		service("10.9.0.104:0", tcp, 800), service("10.9.0.104:21", tcp, 700), // in the other order
		marked(unix.AF_INET, 7, 900), marked(unix.AF_INET6, 7, 1000), marked(unix.AF_INET, 0x0a090064, 1100),
	} {
		k.learn(&s)
	}
	for _, tt := range []struct {
		protocol uint8
		virtual  string
		want     time.Duration // seconds
		mark     uint32
	}{
		{tcp, "10.9.0.100:80", 100, 0},
		{tcp, "10.9.0.100:81", 200, 0},
		{udp, "10.9.0.100:80", 300, 0},
		{tcp, "10.9.0.100:82", 0, 0}, // no persistent service, or none any more
		{tcp, "10.9.0.100:0", 0, 0},
		{tcp, "10.9.0.101:0", 400, 0},
		{tcp, "10.9.0.101:21", 0, 0}, // there are none such
		{tcp, "10.9.0.102:0", 500, 0},
		{tcp, "10.9.0.103:0", 700, 0},
		{tcp, "10.9.0.104:0", 800, 0},
		{0, "0.0.0.7:0", 900, 7},
		{0, "[0:7::]:0", 1000, 7},
		{0, "10.9.0.100:0", 1100, 0x0a090064},
		{0, "0.0.0.8:0", 0, 8},
	} {
		c := conntable.Connection{
			Key:  conntable.Key{Client: netip.MustParseAddrPort("10.1.0.9:0"), Virtual: netip.MustParseAddrPort(tt.virtual), Protocol: tt.protocol, Template: true},
			Dest: netip.AddrPortFrom(realA.Addr(), 0),
		}
		k.complete(&c)
		if c.Timeout != tt.want*time.Second || c.FWMark != tt.mark || c.Flags != conntable.FlagTemplate|conntable.FlagFwdMasq|conntable.FlagInactive {
			t.Errorf("protocol %d, %s: %v, mark %#x, flags %#x; want %v, mark %#x", tt.protocol, tt.virtual, c.Timeout, c.FWMark, c.Flags, tt.want*time.Second, tt.mark)
		}
	}
}

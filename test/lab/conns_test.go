package lab

import (
	"net/netip"
	"testing"
	"time"
)

func TestParseConns(t *testing.T) {
	const text = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A09000B 9C40 0A090064 0050 0A090015 0050 ESTABLISHED     899
UDP [2001:0db8:0000:0000:0000:0000:0000:0001] 0035 [2001:0db8:0000:0000:0000:0000:0000:0002] 0035 [2001:0db8:0000:0000:0000:0000:0000:0003] 0035 UDP             300
`
	got, err := parseConns([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Conn{
		{
			Proto: "TCP", State: "ESTABLISHED", Expires: 899 * time.Second,
			Client:  netip.MustParseAddrPort("10.9.0.11:40000"),
			Virtual: netip.MustParseAddrPort("10.9.0.100:80"),
			Dest:    netip.MustParseAddrPort("10.9.0.21:80"),
		},
		{
			Proto: "UDP", State: "UDP", Expires: 300 * time.Second,
			Client:  netip.MustParseAddrPort("[2001:db8::1]:53"),
			Virtual: netip.MustParseAddrPort("[2001:db8::2]:53"),
			Dest:    netip.MustParseAddrPort("[2001:db8::3]:53"),
		},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("connection %d: got %v, want %v", i, got[i], want[i])
		}
	}
	for _, bad := range []string{"head\nTCP 1 2 3\n", "head\nTCP 0A0900 9C40 0A090064 0050 0A090015 0050 X 1\n"} {
		if _, err := parseConns([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestServiceRules(t *testing.T) {
	vip := netip.MustParseAddr("10.9.0.100")
	servers := []netip.Addr{netip.MustParseAddr("10.9.0.21")}
	for _, test := range []struct {
		service Service
		want    string
	}{
		{
			Service{Proto: "tcp", Port: 80},
			"-A -t 10.9.0.100:80 -s rr\n-a -t 10.9.0.100:80 -r 10.9.0.21:80 -g -w 1\n",
		},
		{
			Service{Proto: "udp", Port: 53, Scheduler: "wlc", Forward: Masq, RealPort: 5353, Persistent: 60},
			"-A -u 10.9.0.100:53 -s wlc -p 60\n-a -u 10.9.0.100:53 -r 10.9.0.21:5353 -m -w 1\n",
		},
	} {
		s, err := test.service.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if got := s.rules(vip, servers); got != test.want {
			t.Errorf("%+v:\n%swant\n%s", test.service, got, test.want)
		}
	}
	for _, bad := range []Service{
		{Proto: "sctp", Port: 1},
		{Proto: "tcp"},
		{Proto: "tcp", Port: 80, RealPort: 8080},
		{Proto: "tcp", Port: 80, Forward: "nat"},
	} {
		if _, err := bad.withDefaults(); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

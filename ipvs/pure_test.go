package ipvs

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/config"
)

const table = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires
TCP 0A090032 9C41 0A090064 0050 C0A80605 1F90 ESTABLISHED LOCAL      899
UDP 7F510001 2291 7F51FFFE 2291 7F51FFFE 2291 UDP         SYNC       299
TCP 0A090032 0000 0A090064 0050 C0A80605 1F90 ASSURED     SYNC   4294967295
IP  0A090032 0000 00000005 0000 C0A80605 0000 NONE        LOCAL       60
TCP 2001:0db8:0000:0000:0000:0000:0000:0001 0400 2001:0db8:0000:0000:0000:0000:0000:0100 0050 2001:0db8:0000:0000:0000:0000:0000:0005 0050 CLOSE       SYNC         9
`

func TestParseConns(t *testing.T) {
	var got []Entry
	if err := ParseConns(strings.NewReader(table), func(e *Entry) error { got = append(got, *e); return nil }); err != nil {
		t.Fatal(err)
	}
	type line struct {
		client, virtual, dest string
		proto                 uint8
		template, synced      bool
		state                 uint16
		expires               time.Duration
	}
	var lines []line
	for _, e := range got {
		lines = append(lines, line{e.Client.String(), e.Virtual.String(), e.Dest.String(), e.Protocol, e.Template, e.Synced, e.State, e.Expires})
	}
	want := []line{
		{"10.9.0.50:40001", "10.9.0.100:80", "192.168.6.5:8080", 6, false, false, 1, 899 * time.Second},
		{"127.81.0.1:8849", "127.81.255.254:8849", "127.81.255.254:8849", 17, false, true, 0, 299 * time.Second},
		{"10.9.0.50:0", "10.9.0.100:80", "192.168.6.5:8080", 6, true, true, 1, 0},
		{"10.9.0.50:0", "0.0.0.5:0", "192.168.6.5:0", 0, true, false, 0, 60 * time.Second},
		{"[2001:db8::1]:1024", "[2001:db8::100]:80", "[2001:db8::5]:80", 6, false, true, 6, 9 * time.Second},
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("got  %+v\nwant %+v", lines, want)
	}
	if !IsBeat(&got[1].Connection) || IsBeat(&got[0].Connection) {
		t.Error("heartbeat entries are not told from others")
	}
}

func TestParseConnsWithoutOrigin(t *testing.T) {
	const text = "UDP 0A090032 9C41 0A090064 13C4 C0A80605 13C4 UDP            2998 sip call@host"
	n := 0
	err := ParseConns(strings.NewReader(text), func(e *Entry) error {
		n++
		if e.Expires != 2998*time.Second || e.Virtual.Port() != 5060 {
			t.Errorf("%+v", e)
		}
		return nil
	})
	if err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestParseConnsRefuses(t *testing.T) {
	good := strings.Split(table, "\n")[1]
	for _, bad := range []string{
		"x",
		strings.Replace(good, "TCP", "XYZ", 1),
		strings.Replace(good, "0A090032", "0A09003", 1),
		strings.Replace(good, "0A090032", "0A09003G", 1),
		strings.Replace(good, "9C41", "19C41", 1),
		strings.Replace(good, "ESTABLISHED", "BUG!", 1),
		strings.Replace(good, "899", "-1", 1),
		strings.TrimSuffix(good, "899"),
	} {
		if err := ParseConns(strings.NewReader(bad), func(*Entry) error { return nil }); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	stop := errors.New("stop")
	if err := ParseConns(strings.NewReader(table), func(*Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("fn's error became %v", err)
	}
}

func FuzzParseConns(f *testing.F) {
	for _, l := range strings.Split(table, "\n") {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_ = ParseConns(strings.NewReader(text), func(e *Entry) error {
			if !e.Client.IsValid() || !e.Virtual.IsValid() || !e.Dest.IsValid() || e.Expires < 0 {
				t.Errorf("%+v", e)
			}
			if name := StateName(e.Protocol, e.Template, e.State); !strings.Contains(text, name) && name != "ERR!" {
				t.Errorf("state %q of %q", name, text)
			}
			return nil
		})
	})
}

const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   12: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 0
 1340: 510000E0:2290 0100007F:BEEF 01 00000000:00000300 00:00000000 00000000     0        0 1 2 0000000000000000 7
 1340: 510000E0:2290 00000000:0000 07 00000000:00001A00 00:00000000 00000000     0        0 1 2 0000000000000000 103
`

func TestFindUDP(t *testing.T) {
	s, err := findUDP(strings.NewReader(udpTable), netip.MustParseAddrPort("224.0.0.81:8848"))
	if err != nil || s.queue != 0x1a00 || s.drops != 103 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := findUDP(strings.NewReader(udpTable), netip.MustParseAddrPort("224.0.0.81:8847")); err == nil {
		t.Errorf("found %+v", s)
	}
}

func FuzzFindUDP(f *testing.F) {
	f.Add(udpTable)
	f.Fuzz(func(_ *testing.T, text string) {
		_, _ = findUDP(strings.NewReader(text), netip.MustParseAddrPort("224.0.0.81:8848"))
	})
}

// packet is 169.254.81.48 to 224.0.0.81 port 8847, payload "abc" and two bytes
// of trailer.
const packet = "4500001f 00004000 01110000 a9fe5130 e0000051 8000 228f 000b 0000 616263 ffff"

func TestPayload(t *testing.T) {
	to := netip.AddrPortFrom(syncGroup, 8847)
	good := unhex(t, packet)
	if got, ok := payload(good, tunAddr, to); !ok || string(got) != "abc" {
		t.Fatalf("%q, %v", got, ok)
	}
	for at, value := range map[int]byte{
		0: 0x65, 3: 0xff, 6: 0x20, 7: 1, 9: 6, 15: 0x31, 19: 0x52, 23: 0x90, 25: 0xff,
	} {
		bad := bytes.Clone(good)
		bad[at] = value
		if got, ok := payload(bad, tunAddr, to); ok {
			t.Errorf("byte %d set to %#x: accepted as %q", at, value, got)
		}
	}
	for n := range 31 {
		if got, ok := payload(good[:n], tunAddr, to); ok {
			t.Errorf("cut to %d bytes: accepted as %q", n, got)
		}
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(unhex(f, packet))
	f.Fuzz(func(t *testing.T, p []byte) {
		if got, ok := payload(p, tunAddr, netip.AddrPortFrom(syncGroup, 8847)); ok && len(got) > len(p)-28 {
			t.Errorf("%d bytes of payload in %d", len(got), len(p))
		}
	})
}

func TestDeletion(t *testing.T) {
	c := beatEntry(1)
	c.Protocol, c.State = 6, 1
	if d := deletion(&c); d.State != 6 || d.Flags&conntable.FlagInactive == 0 || d.Timeout != time.Second || d.Dest != c.Dest || d.Key != c.Key {
		t.Errorf("TCP: %+v", d)
	}
	c.Template = true
	if d := deletion(&c); d.State != 1 || d.Flags != c.Flags || d.Timeout != time.Second {
		t.Errorf("template: %+v", d)
	}
}

func TestBeatEntries(t *testing.T) {
	for _, tt := range []struct {
		rate    int
		refresh time.Duration
	}{{20, 10 * time.Second}, {1, time.Second}, {1000, time.Minute}} {
		b := newBeats(tt.rate, tt.refresh)
		seen := map[conntable.Key]bool{}
		for i := range b.entries {
			c := &b.entries[i]
			if !IsBeat(c) || beatIndex(c) != i || seen[c.Key] {
				t.Fatalf("entry %d: %+v", i, c)
			}
			seen[c.Key] = true
		}
		round := time.Duration(len(b.entries)) * time.Second / time.Duration(tt.rate)
		if round <= tt.refresh && len(b.entries) < maxBeats {
			t.Errorf("%d a second come round in %v, which the kernel skips within %v", tt.rate, round, tt.refresh)
		}
		if b.ahead < 1 || b.ahead >= len(b.entries) {
			t.Errorf("injected %d ahead of %d", b.ahead, len(b.entries))
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Interface: "waytoolonginterface"}, "waytoolong"},
		{Config{Interface: "../x"}, "../x"},
		{Config{CapturePort: 8848}, "8848"},
		{Config{CaptureID: 82}, "82"},
		{Config{MaxLen: 20000}, "20000"},
		{Config{RefreshPeriod: 1500 * time.Millisecond}, "1.5s"},
		{Config{BeatRate: -1}, "-1"},
	} {
		_, err := OpenTap(testLog(t), tt.cfg)
		if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.cfg, err)
		}
	}
}

func TestSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "tap.json")
	now, err := here()
	if err != nil {
		t.Fatal(err)
	}
	if _, found, err := loadSaved(path, now); found || err != nil {
		t.Errorf("no file: %v, %v", found, err)
	}
	s := now
	s.Sysctls = []setting{{"sync_threshold", "3\t50"}}
	if err := s.store(path); err != nil {
		t.Fatal(err)
	}
	if got, found, err := loadSaved(path, now); !found || err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v, %v", got, found, err)
	}
	elsewhere := now
	elsewhere.Netns = "net:[1]"
	if got, found, err := loadSaved(path, elsewhere); found || err != nil || !reflect.DeepEqual(got, elsewhere) {
		t.Errorf("of another namespace: %+v, %v, %v", got, found, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, found, err := loadSaved(path, now); found || err == nil {
		t.Errorf("broken file: %v, %v", found, err)
	}
}

// TestBelow: what a kernel tells that is no number does not keep a bound from
// being set.
func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		now  string
		want bool
	}{{"0", true}, {"131071", true}, {"131072", false}, {"18446744073709551615", false}, {"", true}, {"-1", true}} {
		if got := below(tt.now, "131072"); got != tt.want {
			t.Errorf("%q below 131072: %v", tt.now, got)
		}
	}
}

package queue

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/partition"
	"saru/partition/nft"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes on a little-endian machine.
func TestWire(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{
			"accept one", appendVerdict(nil, msgVerdict, 0x5320, verdictAccept, 7),
			"20000000 0103 0100 00000000 00000000 00 00 5320  0c00 0200 00000001 00000007",
		},
		{
			"drop up to", appendVerdict(nil, msgVerdictMany, 0x5320, verdictDrop, 0x01020304),
			"20000000 0303 0100 00000000 00000000 00 00 5320  0c00 0200 00000000 01020304",
		},
		{
			"bind", appendBind(nil, 1, 5, 2048),
			"34000000 0203 0500 01000000 00000000 00 00 0005  0800 0100 01000000  0800 0300 00000800  0800 0400 00000005  0800 0500 00000004",
		},
		{
			"listen", appendListen(nil, 2, 5, 2048),
			"20000000 0203 0500 02000000 00000000 00 00 0005  0900 0200 00000800 02 000000",
		},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s: % x, want % x", c.name, c.got, want)
		}
	}
}

func TestParse(t *testing.T) {
	packet := "38000000 0003 0000 00000000 00000000 02 00 5320  0b00 0100 0000002a 0800 01 00  0800 0d00 000005dc  0800 0500 00000002  0700 0a00 450102 00"
	m, rest, err := parse(unhex(t, packet+"ff"))
	if err != nil || m.id != 42 || m.whole != 1500 || !bytes.Equal(m.head, []byte{0x45, 1, 2}) || m.answer || len(rest) != 1 {
		t.Errorf("%+v, % x, %v", m, rest, err)
	}
	m, rest, err = parse(unhex(t, "24000000 0200 0000 01000000 00000000 f0ffffff 34000000 0203 0500 01000000 00000000"))
	if err != nil || !m.answer || m.sequence != 1 || !errors.Is(m.err, unix.EBUSY) || len(rest) != 0 {
		t.Errorf("%+v, % x, %v", m, rest, err)
	}
	for _, bad := range []string{
		"", "3c000000", "13000000 0003 0000 00000000 00000000 02 00 5320",
		"14000000 0003 0000 00000000 00000000 02 00 5320",           // no number
		"18000000 0003 0000 00000000 00000000 02 00 5320 0300 0100", // an attribute shorter than its header
		"18000000 0003 0000 00000000 00000000 02 00 5320 0b00 0100", // and one that goes on too long
		"14000000 0900 0000 00000000 00000000 02 00 5320",
	} {
		if m, _, err := parse(unhex(t, bad)); err == nil {
			t.Errorf("%q: %+v", bad, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(unhex(f, "24000000 0200 0000 01000000 00000000 f0ffffff 34000000 0203 0500 01000000 00000000"))
	f.Add(unhex(f, "2c000000 0003 0000 00000000 00000000 02 00 5320 0b00 0100 0000002a 0800 01 00 0700 0a00 450102 00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, rest, err := parse(b)
		if err == nil && (len(rest) >= len(b) || m.whole < len(m.head)) {
			t.Errorf("%+v, %d of %d bytes left", m, len(rest), len(b))
		}
	})
}

func tcp(opens bool, from uint16) *queued {
	flags := byte(0x10)
	if opens {
		flags = 0x02
	}
	b := []byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, partition.TCP, 0, 0, 192, 0, 2, 7, 10, 9, 0, 100}
	b = append(b, byte(from>>8), byte(from), 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0)
	return &queued{id: 1, head: b, whole: len(b)}
}

// At a hand-over what opens a flow is the taker's, and all of it from then on;
// who has all of a bucket takes all of it.
func TestJudge(t *testing.T) {
	divider, err := partition.NewDivider(testConfig(time.Second).Plan)
	if err != nil {
		t.Fatal(err)
	}
	client := netip.MustParseAddr("192.0.2.7")
	bucket := divider.Bucket(divider.Divisions[0], netip.AddrPortFrom(client, 40001), netip.AddrPortFrom(vip, 80))
	one := partition.SetOf(bucket)
	s := newShare(divider)
	v := &view{share: s}
	now := time.Now()
	for i, step := range []struct {
		held  nft.Desired
		after time.Duration
		opens bool
		want  bool
	}{
		{nft.Desired{}, 0, true, false},
		{nft.Desired{}, 0, false, false},
		{nft.Desired{Open: one, Rest: one}, 0, true, true},
		{nft.Desired{Open: one, Rest: one}, 0, false, true},
		{nft.Desired{Rest: one}, 0, false, true},
		{nft.Desired{Rest: one}, 0, true, false}, // the other director's now
		{nft.Desired{Rest: one}, 0, false, false},
		{nft.Desired{Rest: one}, 59 * time.Second, false, false},
		{nft.Desired{Open: one, Rest: one}, 0, false, true},
		{nft.Desired{Rest: one}, 2 * time.Second, false, true},
	} {
		s.apply(step.held)
		now = now.Add(step.after)
		v.hold(now)
		if got := v.accept(tcp(step.opens, 40001)); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
		v.release()
	}
	if n := testing.AllocsPerRun(100, func() {
		v.hold(now)
		v.accept(tcpPacket)
		v.release()
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	v.hold(now)
	cut := tcp(true, 40001)
	cut.head = cut.head[:22]
	if v.accept(cut) || s.stats.malformed.Load() != 1 {
		t.Error("a packet cut off before its flags was accepted, or not counted")
	}
	v.release()
}

var tcpPacket = tcp(false, 40001)

// What is remembered of flows has a limit, and room again when it is old.
func TestSupersededIsBounded(t *testing.T) {
	s := superseded{flows: map[flow]time.Time{}}
	now := time.Now()
	of := func(i int) flow {
		return flow{netip.AddrPortFrom(vip, uint16(i)), netip.AddrPortFrom(vip, uint16(i>>16)), 6}
	}
	for i := range maxSuperseded + 10 {
		if s.note(of(i), now) != (i < maxSuperseded) {
			t.Fatalf("flow %d", i)
		}
	}
	if !s.note(of(5), now) || s.has(of(maxSuperseded+1), now) || !s.has(of(5), now) {
		t.Error("a known flow was forgotten, or a refused one is known")
	}
	now = now.Add(supersededLife + time.Second)
	if !s.note(of(maxSuperseded+1), now) || len(s.flows) != 1 {
		t.Errorf("%d flows after a minute", len(s.flows))
	}
}

func TestParseCounts(t *testing.T) {
	line := "21280   1234     3 2  2048     5     7      99  1"
	if c, ok := parseCounts([]byte(line)); !ok || c != (counts{21280, 3, 12}) {
		t.Errorf("%+v, %v", c, ok)
	}
	for _, bad := range []string{"", "1 2 3", "a 1 1 1 1 1 1 1 1"} {
		if _, ok := parseCounts([]byte(bad)); ok {
			t.Errorf("%q", bad)
		}
	}
}

// Where the table could not be read after a change nothing is held, and nobody
// is told that what was held before still is: nobody would serve it then.
func TestApplyThatCannotBeRead(t *testing.T) {
	d, err := partition.NewDivider(partition.Plan{VIPs: partition.Hosts(vip), Buckets: 16, Default: partition.Division{Sense: partition.SrcPort}})
	if err != nil {
		t.Fatal(err)
	}
	s := newShare(d)
	held := nft.Desired{Open: partition.FullSet(8), Rest: partition.FullSet(16)}
	for _, c := range []struct{ said, want error }{{nil, nil}, {nft.ErrGone, nft.ErrGone}, {unix.ENOBUFS, nft.ErrUnknown}} {
		s.apply(held)
		got := s.judged(c.said)
		if !errors.Is(got, c.want) || !errors.Is(got, c.said) {
			t.Errorf("%v: %v, want %v", c.said, got, c.want)
		}
		if kept := s.held == held; kept != (c.want == nil) {
			t.Errorf("%v: what was to be held is: %v", c.said, kept)
		}
	}
}

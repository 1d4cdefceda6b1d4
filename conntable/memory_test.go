package conntable

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What the table may take for each IPv4 TCP connection, in bytes resident.
const bytesPerEntry = 64

// entriesVar says to a child process how many entries to measure with, and to
// TestMemory how many million besides the usual one: 10 takes a minute.
const entriesVar = "CONNTABLE_MILLIONS"

func TestMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector keeps memory of its own for each byte")
	}
	sizes := []int{1}
	if s := os.Getenv(entriesVar); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s=%q: want a number of millions", entriesVar, s)
		}
		sizes = append(sizes, n)
	}
	for _, n := range sizes {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMemoryChild$", "-test.v")
		cmd.Env = append(os.Environ(), entriesVar+"="+strconv.Itoa(n), "CONNTABLE_CHILD=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%d million: %v\n%s", n, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if _, figures, ok := strings.Cut(line, "memory: "); ok {
				t.Log(strings.TrimSpace(figures))
			}
		}
	}
}

// TestMemoryChild fills a table in a process of its own, under what happens to
// a mirror in life, and looks at the process's resident memory all the while.
func TestMemoryChild(t *testing.T) {
	if os.Getenv("CONNTABLE_CHILD") == "" {
		t.Skip("is run by TestMemory, in a process of its own")
	}
	millions, err := strconv.Atoi(os.Getenv(entriesVar))
	if err != nil {
		t.Fatal(err)
	}
	many := millions * 1_000_000
	debug.FreeOSMemory()
	before := resident(t)

	tab, clock := New(many), NewClock(1)
	var d Digests
	worst, worstAt := 0.0, 0
	for i := range many {
		r := sample(i)
		r.Version = clock.Next()
		if got := tab.Apply(&r, 0).Outcome; got != Added {
			t.Fatalf("entry %d: %v", i, got)
		}
		switch i % 10 {
		case 3: // it closes
			r.State, r.Timeout, r.Remaining = 5, 120*time.Second, 120*time.Second
			r.Version = clock.Next()
			tab.Apply(&r, 0)
		case 7: // it is gone, and leaves a tombstone
			tab.Delete(r.Key, clock.Next(), 0)
		}
		if i%1000 == 0 {
			tab.Expire()
			tab.Digests(clock.Now(), &d)
		}
		if n := i + 1; n >= 1_000_000*9/10 && n%(many/200) == 0 {
			if b := float64(resident(t)-before) / float64(n); b > worst {
				worst, worstAt = b, n
			}
		}
	}
	end := float64(resident(t)-before) / float64(many)
	t.Logf("memory: %d entries, %d of them tombstones: %.1f bytes resident for each; %.1f at the worst point of growth, at %d entries",
		tab.Len()+tab.Tombstones(), tab.Tombstones(), end, worst, worstAt)
	if worst > bytesPerEntry {
		t.Errorf("%.1f bytes for each of %d entries, want %d at most", worst, worstAt, bytesPerEntry)
	}
}

// sample is connection i of ten services with twenty real servers each.
func sample(i int) Record {
	n := uint32(i) * 2654435761 // all different, in no order
	client := netip.AddrFrom4([4]byte{100 + byte(n>>30), byte(n >> 22), byte(n >> 14), byte(n >> 6)})
	return Record{
		Connection: Connection{
			Key: Key{
				Client:   netip.AddrPortFrom(client, 1024+uint16(n&63)),
				Virtual:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, 100 + byte(i%10)}), 443),
				Protocol: 6,
			},
			Dest:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(i % 10), 10 + byte(i/10%20)}), 8443),
			State: 1, Flags: FlagFwdGate, Timeout: 900 * time.Second,
		},
		Remaining: 900 * time.Second,
	}
}

// resident is the process's resident memory that is not files', in bytes.
func resident(t *testing.T) int64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kb int64
		if n, _ := fmt.Sscanf(lines.Text(), "RssAnon: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Skip("/proc/self/status has no RssAnon")
	return 0
}

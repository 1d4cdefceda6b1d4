package syncd

import (
	"log/slog"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/internal/metrics"
	"saru/syncproto/peer"
	"saru/syncproto/peer/peertest"
)

// Whatever number `syncd status --json` has, Prometheus has too.
func TestMetricsTellAllThatStatusDoes(t *testing.T) {
	st := Status{Defer: &DeferCounts{}, Peers: []peer.PeerStatus{{Name: "d2", DigestEqual: new(bool)}}, Records: map[string]uint64{"added": 1}}
	var want []figure
	for name, part := range map[string]any{
		"": &st, "connections": &st.Connections, "kernel": &st.Kernel, "audit": &st.Audit, "ownership": &st.Ownership,
		"templates": &st.Templates, "sent": &st.Sent, "defer": st.Defer, "peers": &st.Peers[0],
	} {
		want = fill(want, name, reflect.ValueOf(part).Elem())
	}
	w := httptest.NewRecorder()
	metrics.Handler("syncd", func(s *metrics.Sink) error { st.scrape(s); return nil }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, n := range want {
		if n.key == "connections.owned" { // the sum of the three kinds
			continue
		}
		if !strings.Contains(w.Body.String(), " "+n.text+"\n") {
			t.Errorf("no metric has %s", n.key)
		}
	}
	if len(want) < 60 {
		t.Errorf("status has %d numbers, so this test shows nothing", len(want))
	}
}

// A figure is one of Status's, as a metric shows it.
type figure struct{ key, text string }

// fill gives each number in v a value of its own, and appends it to out.
func fill(out []figure, name string, v reflect.Value) []figure {
	for i := range v.NumField() {
		f, value := v.Field(i), len(out)+1001
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch {
		case f.CanInt():
			f.SetInt(int64(value))
		case f.Kind() == reflect.Uint8:
			value %= 200
			f.SetUint(uint64(value))
		case f.CanUint():
			f.SetUint(uint64(value))
		case f.CanFloat():
			f.SetFloat(float64(value))
		default:
			continue
		}
		shown := float64(value)
		if strings.HasSuffix(key, "_ms") {
			shown /= 1000
		}
		out = append(out, figure{name + "." + key, strconv.FormatFloat(shown, 'g', -1, 64)})
	}
	return out
}

func TestFullMirrorIsTold(t *testing.T) {
	for _, c := range []struct {
		counts ConnectionCounts
		want   bool
	}{
		{ConnectionCounts{Limit: 1}, false},
		{ConnectionCounts{Mirror: 949, Limit: 1000}, false},
		{ConnectionCounts{Mirror: 950, Limit: 1000}, true},
		{ConnectionCounts{Mirror: 900, Tombstones: 50, Limit: 1000}, true},
		{ConnectionCounts{Mirror: 1 << 30, Limit: 1 << 30}, true},
	} {
		if got := c.counts.full(); (got != "") != c.want {
			t.Errorf("%+v: %q", c.counts, got)
		}
	}
}

// What a full mirror sheds is counted, and people are warned.
func TestSheddingIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler), Limit: 20})
		e.SetKernel(newFakeKernel())
		for i := range 30 {
			c := tcp(i, established, 900*time.Second)
			e.Captured(&c)
		}
		st := e.Status()
		if st.Kernel.Shed != 10 || st.Connections.Mirror != 20 {
			t.Fatalf("%+v %+v", st.Kernel, st.Connections)
		}
		says := printed(t, &st)
		for _, want := range []string{"  WARNING: the mirror has 20 entries, deleted ones included, and room for 20", "  shed         10 connections, and 0 records of peers"} {
			if !strings.Contains(says, want) {
				t.Errorf("status lacks %q:\n%s", want, says)
			}
		}
	})
}

func printed(t *testing.T, st *Status) string {
	t.Helper()
	var b strings.Builder
	must(t, st.Print(&b))
	return b.String()
}

// A line that is about trouble, or about what is off, is there only if there
// is any.
func TestStatusForPeople(t *testing.T) {
	for line, set := range map[string]func(*Status){
		"shed         3 connections, and 0 records of peers not taken": func(st *Status) { st.Kernel.Shed = 3 },
		"shed         0 connections, and 4 records of peers not taken": func(st *Status) { st.Records = map[string]uint64{"full": 4} },
		"held back    5 records":                           func(st *Status) { st.Kernel.HeldBack = 5 },
		"templates    2 that directors disagreed on":       func(st *Status) { st.Templates.Conflicts = 2 },
		"refreshes held back, others up to 42 s late; up":  func(st *Status) { st.Sent.RoundS = 42 },
		"refreshes held back, 7 handshakes as buckets":     func(st *Status) { st.Sent.RoundS, st.Sent.Handshakes = 15, 7 },
		"1 first packet held back, 0 of them until a peer": func(st *Status) { st.Defer = &DeferCounts{Held: 1, InEffect: true} },
		"9 first packets held back, 6 of them until a peer had the connection, 2 for all of 20 ms; 4 passed, 1 waiting": func(st *Status) {
			st.Defer = &DeferCounts{Held: 9, Acked: 6, Late: 2, MaxMS: 20, Passed: 4, Waiting: 1, InEffect: true}
		},
		"DEFER IS NOT IN EFFECT": func(st *Status) { st.Defer = &DeferCounts{} },
	} {
		var st Status
		if strings.Contains(printed(t, &st), line) {
			t.Errorf("%q is shown without a reason", line)
		}
		set(&st)
		if says := printed(t, &st); !strings.Contains(says, line) {
			t.Errorf("status lacks %q:\n%s", line, says)
		}
	}
}

// FTP through LVS-NAT is conntrack's, with whatever source.
func TestWhatNoSourceCoversIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := start(t, peertest.New(1), 1, newFakeKernel()).Status()
		if !slices.ContainsFunc(st.NotCovered, func(s string) bool { return strings.HasPrefix(s, "FTP through LVS-NAT") }) {
			t.Errorf("%q", st.NotCovered)
		}
	})
}

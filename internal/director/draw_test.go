package director

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"saru/internal/metrics"
)

// healthy is what a director in a good cluster knows.
func healthy() *Status {
	return &Status{
		Cluster: "web", Node: "d1", Role: "director", State: "ready", Master: "d2", Epoch: 3<<32 | 7, Quorum: QuorumStatus{"lan", 2, 1}, Syncd: "synced",
		Share:  ShareStatus{Addresses: []string{"10.9.0.100"}, Interface: "eth0", Target: "ipvs", Sense: "src-port", Total: 256, Buckets: 128, LeaseMS: 300, LeaseLeftMS: 211.4},
		Filter: FilterStatus{Intact: true, Accepted: 5, Dropped: 4}, Engine: EngineStatus{Realtime: true},
		Members: []MemberStatus{
			{Name: "d1", Addr: "10.9.0.2", Role: "director", State: "ready", Weight: 100, Buckets: 128},
			{Name: "d2", Addr: "10.9.0.3", Role: "director", State: "ready", Weight: 100, Buckets: 128, SilentMS: 12.3},
		},
		Paths: []PathStatus{{Name: "udp", Sent: 9, Received: 8}},
	}
}

func text(t *testing.T, st *Status) string {
	t.Helper()
	var b strings.Builder
	if err := st.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestStatusOfAGoodCluster(t *testing.T) {
	const want = `cluster web, seen by d1: all 256 buckets have an acceptor; 2 of 2 directors serve

MEMBER  ADDRESS   STATE  WEIGHT  BUCKETS  SHARE                     HEARD      WHY
d1      10.9.0.2  ready  100     128      ############............  here       
d2 *    10.9.0.3  ready  100     128      ############............  12 ms ago  

master  d2, epoch 3.7; quorum lan, 2 heard
share   10.9.0.100 on eth0, target ipvs; 128 of 256 buckets here, by src-port
lease   300 ms, 211.4 ms left
filter  accepted 5, dropped 4, silenced 0 packets; replaced 0 times
syncd   synced
path    udp    sent 9, received 8, refused 0, unsent 0
`
	if got := text(t, healthy()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// What is wrong is said first, with what it means.
func TestStatusSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Status)
		says   []string
	}{
		"a member is gone": {func(st *Status) {
			st.Members[1].State, st.Members[1].Buckets, st.Members[1].Why = "unreachable", 0, "no heartbeat for longer than its lease"
		}, []string{"128 of 256 buckets have NO ACCEPTOR; 1 of 2 directors serve", "d2 *    10.9.0.3  unreachable", "no heartbeat for longer"}},
		"nobody serves": {func(st *Status) {
			st.State, st.Why, st.Members[0].Buckets, st.Members[1].Buckets = "fenced", "no carrier on the share's interface", 0, 0
		}, []string{"NOBODY serves any of the 256 buckets", "! this node is fenced: no carrier"}},
		"frozen":      {func(st *Status) { st.Frozen = true }, []string{"! planned moves are stopped until 'saru unfreeze'"}},
		"a flush":     {func(st *Status) { st.Filter.Intact = false }, []string{"! somebody else changed the kernel's table"}},
		"no lease":    {func(st *Status) { st.Share.LeaseLeftMS = 0 }, []string{"! 128 buckets are open here without a lease"}},
		"no priority": {func(st *Status) { st.Engine.Realtime = false }, []string{"! the engine has no real-time priority"}},
		"old ARP": {
			func(st *Status) { st.Filter.Own, st.Filter.OwnSender = 3, "02:00:00:00:00:07" },
			[]string{"! 3 packets came to this node's own MAC, last from 02:00:00:00:00:07"},
		},
		"storm control": {
			func(st *Status) { st.LAN = []string{"only 70 % of the bytes come here"} },
			[]string{"! only 70 % of the bytes come here"},
		},
		"a small share": {func(st *Status) { st.Members[0].Buckets, st.Members[1].Buckets = 1, 255 }, []string{"1        #......................."}},
		"changes": {func(st *Status) {
			st.Changes = []Event{{Time: time.Now().Add(-90 * time.Second), Kind: "moved", Text: "epoch 3.7: 0-127 from d3 to d2: d3 drains"}}
		}, []string{"LAST CHANGES", "90 s ago", "from d3 to d2: d3 drains"}},
	} {
		st := healthy()
		c.change(st)
		got := text(t, st)
		for _, says := range c.says {
			if !strings.Contains(got, says) {
				t.Errorf("%s: %q is not in\n%s", name, says, got)
			}
		}
		if troubles := strings.Count(got, "! "); strings.HasPrefix(c.says[len(c.says)-1], "!") != (troubles == 1) {
			t.Errorf("%s: %d troubles in\n%s", name, troubles, got)
		}
	}
}

func TestMetrics(t *testing.T) {
	st := healthy()
	w := httptest.NewRecorder()
	metrics.Handler("saru", func(s *metrics.Sink) error { st.scrape(s); return nil }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"saru_state{state=\"ready\"} 1\n", "saru_accepted_packets_total 5\n", "saru_path_sent_total{path=\"udp\"} 9\n",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q is not in:\n%s", want, w.Body.String())
		}
	}
}

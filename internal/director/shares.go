package director

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sync/errgroup"

	"saru/internal/config"
	"saru/internal/control"
	"saru/partition"
)

// Several shares of one cluster are served by one process and have nothing else
// in common: each has its own members' heartbeats and gossip, at ports of its
// own, its own master, table, lease and control socket. So a fault of one's
// division never opens another's bucket. The first, that of the lowest id, has
// the ports and the socket that the configuration names, and speaks for all.

const (
	// maxShares is how many shares a cluster can have.
	maxShares = 16
	// portsPerShare: gossip and heartbeats. Metrics skip syncd's port.
	portsPerShare = 2
	// othersWithin bounds how long another share's answer is waited for.
	othersWithin = 2 * time.Second
)

// manyFile is a File with [[share]] in place of [share].
type manyFile struct {
	Cluster ClusterSection `toml:"cluster"`
	Share   []ShareSection `toml:"share"`
	Timing  TimingSection  `toml:"timing"`
	Control ControlSection `toml:"control"`
}

// readFile reads the configuration at path: the defaults, if there is none at
// the default place.
func readFile(path string) (File, error) {
	f := DefaultFile()
	text, err := os.ReadFile(path)
	if path == DefaultConfigPath && errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	var kind struct{ Share any }
	if err != nil || toml.Unmarshal(text, &kind) != nil {
		return f, config.Load(path, &f) // which says what is wrong
	}
	if _, many := kind.Share.([]any); !many {
		return f, config.Load(path, &f)
	}
	m := manyFile{Cluster: f.Cluster, Timing: f.Timing, Control: f.Control}
	if err := config.Load(path, &m); err != nil {
		return f, err
	}
	if len(m.Share) == 0 {
		return f, config.Bad("%s: share = [] names no share; remove the key for none, or write [[share]] sections", path)
	}
	for i := range m.Share {
		m.Share[i].fill(&f.Share)
	}
	slices.SortStableFunc(m.Share, func(a, b ShareSection) int { return cmp.Compare(a.ID, b.ID) })
	return File{Cluster: m.Cluster, Share: m.Share[0], Timing: m.Timing, Control: m.Control, more: m.Share[1:]}, nil
}

// fill gives what is not set its default.
func (s *ShareSection) fill(d *ShareSection) {
	s.ID, s.Buckets, s.Fragments = cmp.Or(s.ID, d.ID), cmp.Or(s.Buckets, d.Buckets), cmp.Or(s.Fragments, d.Fragments)
	s.Sense, s.Method, s.Mode = cmp.Or(s.Sense, d.Sense), cmp.Or(s.Method, d.Method), cmp.Or(s.Mode, d.Mode)
	s.Backend, s.Target = cmp.Or(s.Backend, d.Backend), cmp.Or(s.Target, d.Target)
}

// others validates the shares but the first, and what they must not have in
// common.
func (f *File) others(first *Settings) (all []*Settings, err error) {
	if len(f.more) >= maxShares {
		return nil, config.Bad("%d shares: use at most %d", len(f.more)+1, maxShares)
	}
	seen := []*Settings{first}
	for i, section := range f.more {
		g := *f
		g.Share, g.more = section, nil
		s, err := g.first()
		if err != nil {
			return nil, fmt.Errorf("share %d: %w", section.ID, err)
		}
		s.rank, s.Keys, s.Seed = i+1, first.Keys, first.Seed
		if err := s.shift(); err != nil {
			return nil, err
		}
		for _, o := range seen {
			if err := apart(o, s); err != nil {
				return nil, err
			}
		}
		seen, all = append(seen, s), append(all, s)
	}
	for _, s := range seen {
		for _, o := range seen {
			s.ids = append(s.ids, o.ID)
		}
	}
	return all, nil
}

// shift gives a share ports and a socket of its own.
func (s *Settings) shift() error {
	by := s.rank * portsPerShare
	move := func(key string, at netip.AddrPort) (netip.AddrPort, error) {
		if int(at.Port())+by > 65534 {
			return at, config.Bad("%s = %q: share %d takes the ports from %d on; use a lower one", key, at, s.ID, int(at.Port())+by)
		}
		return netip.AddrPortFrom(at.Addr(), at.Port()+uint16(by)), nil
	}
	var err error
	if s.Bind, err = move("cluster.bind", s.Bind); err != nil {
		return err
	}
	for i := range s.Join {
		if s.Join[i], err = move("cluster.join", s.Join[i]); err != nil {
			return err
		}
	}
	if at, perr := netip.ParseAddrPort(s.Metrics); perr == nil {
		if at, err = move("control.metrics", at); err != nil {
			return err
		}
		s.Metrics = at.String()
	}
	s.Socket = fmt.Sprintf("%s.%d", s.Socket, s.ID)
	return nil
}

// apart refuses two shares that are not.
func apart(a, b *Settings) error {
	if a.ID == b.ID {
		return config.Bad("share.id = %d names two shares; give each its own", a.ID)
	}
	for _, v := range a.VIPs {
		for _, w := range b.VIPs {
			if v.Overlaps(w) {
				return config.Bad("share.addresses: %s of share %d and %s of share %d overlap", vipText(v), a.ID, vipText(w), b.ID)
			}
		}
	}
	// In mode forward all shares of an interface have its own address.
	if len(a.MAC) > 0 && !(a.Forward && b.Forward) && bytes.Equal(a.MAC, b.MAC) {
		return config.Bad("share.mac = %q is that of shares %d and %d; give each its own", a.MAC, a.ID, b.ID)
	}
	return insidesApart(a, b)
}

// insidesApart refuses real servers of two shares that are not apart: a reply
// must show by its source, and by the gateway that it is sent to, whose it is.
func insidesApart(a, b *Settings) error {
	for _, pair := range [][2]*Settings{{a, b}, {b, a}} {
		in, other := pair[0].Inside, pair[1]
		if in == nil {
			continue
		}
		if bytes.Equal(in.MAC, other.MAC) {
			return config.Bad("share.inside.mac = %q of share %d is share.mac of share %d; give each its own", in.MAC, pair[0].ID, other.ID)
		}
		for _, n := range in.Networks {
			for _, v := range other.VIPs {
				if n.Overlaps(v) {
					return config.Bad("share.inside.networks = %q of share %d: the virtual address %s of share %d is in it", n, pair[0].ID, vipText(v), other.ID)
				}
			}
		}
	}
	if a.Inside == nil || b.Inside == nil {
		return nil
	}
	if a.Inside.Address == b.Inside.Address || bytes.Equal(a.Inside.MAC, b.Inside.MAC) {
		return config.Bad("share.inside: shares %d and %d have one gateway, %v at %v and %v at %v; give each its own address and MAC",
			a.ID, b.ID, a.Inside.Address, a.Inside.MAC, b.Inside.Address, b.Inside.MAC)
	}
	for _, n := range a.Inside.Networks {
		for _, m := range b.Inside.Networks {
			if n.Overlaps(m) {
				return config.Bad("share.inside.networks: %v of share %d and %v of share %d overlap; a real server's network belongs to one share", n, a.ID, m, b.ID)
			}
		}
	}
	return nil
}

// pick returns the settings of a share, or nil.
func (s *Settings) pick(id int) *Settings {
	for _, o := range append([]*Settings{s}, s.Others...) {
		if o.ID == id {
			return o
		}
	}
	return nil
}

// ownTables is what the names of our tables in nftables start with.
const ownTables = "saru"

// tableName is the share's table in nftables.
func (s *Settings) tableName() string {
	if s.rank == 0 {
		return ownTables
	}
	return fmt.Sprintf("%s-%d", ownTables, s.ID)
}

// Run is the daemon: it takes its part of each share until ctx ends, then gives
// it away and leaves the kernel as it found it, unless told to keep it. All that
// can be refused is refused before the kernel is touched.
func Run(ctx context.Context, s *Settings, o Options) error {
	all := append([]*Settings{s}, s.Others...)
	for _, share := range all {
		if err := Possible(share); err != nil {
			return err
		}
	}
	if len(all) == 1 {
		return runShare(ctx, s, o)
	}
	g, ctx := errgroup.WithContext(ctx)
	var up sync.WaitGroup
	up.Add(len(all))
	for _, share := range all {
		one := o
		one.Log = o.Log.With("share", share.ID)
		one.Ready = sync.OnceFunc(up.Done)
		g.Go(func() error {
			defer one.Ready() // so that nobody waits for one that failed
			return runShare(ctx, share, one)
		})
	}
	g.Go(func() error {
		up.Wait()
		if ctx.Err() == nil && o.Ready != nil {
			o.Ready()
		}
		return nil
	})
	return g.Wait()
}

// OneShare is what status says of one of several shares.
type OneShare struct {
	State   string         `json:"state"`
	Why     string         `json:"why,omitempty"`
	Master  string         `json:"master"`
	Epoch   uint64         `json:"epoch"`
	Share   ShareStatus    `json:"share"`
	Filter  FilterStatus   `json:"filter"`
	Members []MemberStatus `json:"members"`
}

func (st *Status) one() OneShare {
	return OneShare{st.State, st.Why, st.Master, st.Epoch, st.Share, st.Filter, st.Members}
}

// addOthers adds the other shares to the first's status.
func (d *daemon) addOthers(ctx context.Context, st *Status) {
	st.Shares = []OneShare{st.one()}
	ctx, cancel := context.WithTimeout(ctx, othersWithin)
	defer cancel()
	for _, o := range d.settings.Others {
		var other Status
		if err := control.NewClient(o.Socket).Get(ctx, "/status", &other); err != nil {
			other = Status{State: "unknown", Why: err.Error(), Share: ShareStatus{ID: o.ID, Addresses: vipTexts(o.VIPs)}}
		}
		st.Shares = append(st.Shares, other.one())
	}
}

// withOthers passes on to the other shares what is for them: what is to be
// done, to all; a question about a flow, to the one that has its address.
func (d *daemon) withOthers(own http.Handler) http.Handler {
	if len(d.settings.Others) == 0 {
		return own
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			d.tellAll(own, w, r)
			return
		}
		if r.URL.Path == "/explain" {
			if o := d.settings.with(r.URL.Query().Get("vip")); o != nil {
				passOn(w, r, o, nil)
				return
			}
		}
		own.ServeHTTP(w, r)
	})
}

// with returns the share but the first that has the address of an end of a
// flow, or nil.
func (s *Settings) with(end string) *Settings {
	a, err := netip.ParseAddr(end)
	if at, aerr := netip.ParseAddrPort(end); aerr == nil {
		a, err = at.Addr(), nil
	}
	if err != nil {
		return nil
	}
	for _, o := range s.Others {
		if (&partition.Plan{VIPs: o.VIPs}).IsVIP(a) {
			return o
		}
	}
	return nil
}

// tellAll has all shares do something: the first, and at once the others.
func (d *daemon) tellAll(own http.Handler, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var g errgroup.Group
	for _, o := range d.settings.Others {
		g.Go(func() error {
			answer, err := control.NewClient(o.Socket).Do(r.Context(), r.Method, r.URL.Path, bytes.NewReader(body))
			if err != nil {
				return fmt.Errorf("share %d: %w", o.ID, err)
			}
			return answer.Close()
		})
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	first := &heldAnswer{header: http.Header{}, status: http.StatusOK}
	own.ServeHTTP(first, r)
	if err := g.Wait(); err != nil && first.status == http.StatusOK {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(first.status)
	_, _ = w.Write(first.body.Bytes()) // nobody is left to tell
}

// A heldAnswer keeps an answer until the others are known.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (h *heldAnswer) Header() http.Header { return h.header }

// WriteHeader implements http.ResponseWriter.
func (h *heldAnswer) WriteHeader(status int) { h.status = status }

// Write implements http.ResponseWriter.
func (h *heldAnswer) Write(b []byte) (int, error) { return h.body.Write(b) }

// passOn lets another share answer.
func passOn(w http.ResponseWriter, r *http.Request, o *Settings, body io.Reader) {
	ctx, cancel := context.WithTimeout(r.Context(), othersWithin)
	defer cancel()
	answer, err := control.NewClient(o.Socket).Do(ctx, r.Method, r.URL.RequestURI(), body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer answer.Close()
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.Copy(w, answer)
}

// printOthers draws the shares but the first.
func (st *Status) printOthers(w io.Writer) {
	for _, o := range st.Shares[min(1, len(st.Shares)):] {
		open := 0
		for _, m := range o.Members {
			open += m.Buckets
		}
		fmt.Fprintf(w, "share %d %s: %s, %d of %d buckets here, %d in all; master %s\n",
			o.Share.ID, strings.Join(o.Share.Addresses, ", "), o.State, o.Share.Buckets, o.Share.Total, open, orNone(o.Master))
	}
}

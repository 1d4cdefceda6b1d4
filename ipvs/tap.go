package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/config"
	"saru/syncproto/kernelsync"
)

// syncGroup is the multicast group of the tap, the kernel's own default; of
// 224.0.0.0/24, so that no route decides where it goes.
var syncGroup = netip.AddrFrom4([4]byte{224, 0, 0, 81})

// A Tap captures what the kernel's IPVS does with its connections, and
// injects others. It is a task. Its methods are safe for concurrent use.
type Tap struct {
	log    *slog.Logger
	cfg    Config
	client *Client
	tun    atomic.Pointer[os.File]
	guard  guard
	inj    *injector
	pinger *pinger
	saved  saved
	beats  *beats
	up     chan struct{}
	upOnce sync.Once

	mu   sync.Mutex
	capt Captured // under mu

	injected, deleted, bad atomic.Uint64
	refresh                atomic.Int64 // the kernel's refresh period, ns
	guarded                atomic.Bool
	guardTried             bool                   // of the one goroutine that installs it
	excused                time.Time              // of watch's goroutine: no beat was due until then
	linking                sync.Mutex             // while the interface is made, or the master thread takes to it
	problem                atomic.Pointer[string] // why Healthy is false
	closeOnce              sync.Once
	closeErr               error
}

// Captured counts what came through the tap.
type Captured struct {
	Records uint64            // given to OnRecord
	Beats   uint64            // heartbeats that came back
	Other   uint64            // packets on the interface that are no sync messages
	Decoded kernelsync.Counts // beats included
}

// Stats are a Tap's counters since OpenTap.
type Stats struct {
	Captured
	CaptureDrops uint64        // datagrams dropped since we read too slowly
	Injected     uint64        // records, without heartbeats
	Deleted      uint64        // of them deletions
	Unencodable  uint64        // connections that no sync message can carry
	InjectDrops  uint64        // datagrams lost on the way to the backup thread
	BeatDelay    time.Duration // from the last heartbeat's packet to its record
	Guarded      bool          // other processes are kept off the tap
	Refresh      time.Duration // how often the kernel tells again of a connection that talks
}

// OpenTap prepares the kernel and starts its sync threads. Errors that the
// operator must mend (no IPVS, sync threads of somebody else, another Tap)
// are bad input, and leave the kernel as it was. Run must be called for
// anything to happen, and Close, after Run returned, to put everything back.
func OpenTap(log *slog.Logger, cfg Config) (*Tap, error) {
	cfg.defaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	client, err := dialOrLoad()
	if err != nil {
		return nil, err
	}
	t := &Tap{
		log: log, cfg: cfg, client: client,
		guard: guard{cfg.Interface, cfg.InjectPort},
		beats: newBeats(cfg.BeatRate, maxRefresh),
		up:    make(chan struct{}),
	}
	if err := t.open(); err != nil {
		return nil, err
	}
	return t, nil
}

// dialOrLoad loads the module if the kernel has it as one.
func dialOrLoad() (*Client, error) {
	client, err := Dial()
	if !errors.Is(err, ErrNotSupported) {
		return client, err
	}
	out, merr := exec.Command("modprobe", "ip_vs").CombinedOutput()
	if merr == nil {
		client, err = Dial()
	}
	if errors.Is(err, ErrNotSupported) {
		why := "modprobe ip_vs loaded it, but it is not there"
		if merr != nil {
			why = fmt.Sprintf("modprobe ip_vs: %v %s", merr, strings.TrimSpace(string(out)))
		}
		return nil, fmt.Errorf("%w (%w)", config.Bad("this kernel has no IPVS: %s; use a kernel built with CONFIG_IP_VS", why), ErrNotSupported)
	}
	return client, err
}

// open does the steps that change something, and undoes them on failure.
func (t *Tap) open() (err error) {
	if err := t.refuseForeign(); err != nil {
		return errors.Join(err, t.client.Close())
	}
	// From here on this Tap owns the interface, thus what another left.
	tun, err := openTUN(t.cfg.Interface)
	if err != nil {
		return errors.Join(err, t.client.Close())
	}
	t.tun.Store(tun)
	if err := t.start(); err != nil {
		t.cfg.Keep = false
		return errors.Join(err, t.Close())
	}
	return nil
}

// refuseForeign returns bad input if somebody else has a sync thread.
func (t *Tap) refuseForeign() error {
	daemons, err := t.client.Daemons()
	if err != nil {
		return err
	}
	for _, d := range daemons {
		if !t.cfg.ours(d) {
			return config.Bad("%s", t.cfg.foreign(d))
		}
	}
	return nil
}

func (t *Tap) start() error {
	if err := t.adopt(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	for _, s := range t.cfg.sysctls() {
		if err := s.apply(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	if err := setupTUN(t.cfg.Interface); err != nil {
		return err
	}
	t.installGuard()
	for _, d := range t.cfg.daemons() {
		if err := t.client.StartDaemon(d); err != nil {
			return err
		}
	}
	var err error
	if t.inj, err = newInjector(t.cfg.InjectPort, t.cfg.InjectID); err != nil {
		return err
	}
	t.pinger, err = newPinger()
	return err
}

// adopt takes over what a Tap before us left: its threads are stopped, its
// record of the original settings stays valid. Without one the settings are
// recorded now.
func (t *Tap) adopt() error {
	now, err := here()
	if err != nil {
		return err
	}
	saved, found, err := loadSaved(t.cfg.StateFile, now)
	if err != nil {
		t.log.Warn("record of the original kernel settings lost; present ones are taken for them", "err", err)
	}
	left, err := t.stopDaemons()
	if err != nil {
		return err
	}
	switch {
	case found:
		t.log.Info("taking over from a syncd that did not stop cleanly", "state", t.cfg.StateFile)
	case left:
		t.log.Warn("a syncd left its sync threads without a record of the original kernel settings; present ones are taken for them", "state", t.cfg.StateFile)
	}
	had := len(saved.Sysctls)
	if err := saved.read(t.cfg.sysctls()); err != nil {
		return err
	}
	if !found || len(saved.Sysctls) > had {
		if err := saved.store(t.cfg.StateFile); err != nil {
			return config.Bad("%v; name a writable place", err)
		}
	}
	t.saved = saved
	return nil
}

// stopDaemons stops our sync threads, and says whether there were any.
func (t *Tap) stopDaemons() (bool, error) {
	daemons, err := t.client.Daemons()
	if err != nil {
		return false, err
	}
	stopped := false
	for _, d := range daemons {
		if !t.cfg.ours(d) {
			continue
		}
		if err := t.client.StopDaemon(d.Role); err != nil && !errors.Is(err, unix.ESRCH) {
			return stopped, err
		}
		stopped = true
	}
	return stopped, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	if lo.Attrs().Flags&unix.IFF_UP == 0 {
		return config.Bad("interface lo is down; bring it up with \"ip link set lo up\"")
	}
	return nil
}

func (t *Tap) installGuard() {
	err := t.guard.install()
	if err != nil && (t.guarded.Load() || !t.guardTried) {
		t.log.Warn("other local processes can reach the tap, nftables cannot guard it", "err", err)
	}
	t.guarded.Store(err == nil)
	t.guardTried = true
}

// Run captures until ctx ends.
func (t *Tap) Run(ctx context.Context) error {
	if err := t.tun.Load().SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("read the tap: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { t.tun.Load().SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.capture(ctx) })
	g.Go(func() error { t.beat(gctx); return nil })
	g.Go(func() error { t.watch(gctx); return nil })
	return g.Wait()
}

// Ready is closed when the first heartbeat came back, or when it is clear
// that none will for now; Healthy then says why.
func (t *Tap) Ready() <-chan struct{} { return t.up }

func (t *Tap) ready() { t.upOnce.Do(func() { close(t.up) }) }

func (t *Tap) String() string { return "kernel tap" }

func (t *Tap) capture(ctx context.Context) error {
	buf := make([]byte, tunMTU)
	from := netip.AddrPortFrom(syncGroup, t.cfg.CapturePort)
	dec := kernelsync.Decoder{SyncID: t.cfg.CaptureID}
	var c Captured
	onRecord := func(conn *conntable.Connection) {
		if IsBeat(conn) {
			c.Beats++
			t.beats.back(beatIndex(conn), time.Now())
			t.ready()
			return
		}
		c.Records++
		if t.cfg.OnRecord != nil {
			t.cfg.OnRecord(conn)
		}
	}
	for {
		n, err := t.tun.Load().Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.EBADFD): // the interface is gone
			if err := t.reopen(); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			continue
		case err != nil:
			return fmt.Errorf("read the tap: %w", err)
		}
		if msg, ok := payload(buf[:n], tunAddr, from); ok {
			// What is malformed is counted by its reason.
			_ = dec.Decode(msg, onRecord)
		} else {
			c.Other++
		}
		c.Decoded = dec.Counts
		t.mu.Lock()
		t.capt = c
		t.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// Settle waits until all that Inject and Delete were given before is in the
// kernel's table, or ctx ends. It fails if that takes longer than 5 s. Nothing
// is injected meanwhile, and each call reads a table of all UDP sockets: it is
// for the end of something that was long, not for each record.
func (t *Tap) Settle(ctx context.Context) error { return t.inj.settle(ctx) }

// Inject tells the kernel of conns, which creates the entries or overwrites
// what it has for their keys: it checks nothing, so the caller never gives
// what is older than the kernel's own. It blocks while the backup thread is
// behind, and fails, having injected some of conns or none, while that thread
// does not run; Healthy tells, and the caller tries again. When it returns, up to
// 128 KiB may still wait for that thread (Settle). An entry of which the
// kernel does not know the service and real server stays unbound until it is
// injected again.
func (t *Tap) Inject(conns []conntable.Connection) error {
	sent, bad, err := t.inj.inject(conns)
	t.injected.Add(uint64(sent))
	t.bad.Add(uint64(bad))
	return err
}

// Delete makes the kernel drop c within some two seconds, if its Dest is the
// entry's. Traffic on the entry meanwhile keeps it alive (shortened), so the
// caller looks whether it is gone.
func (t *Tap) Delete(c conntable.Connection) error {
	sent, bad, err := t.inj.inject([]conntable.Connection{deletion(&c)})
	t.injected.Add(uint64(sent))
	t.deleted.Add(uint64(sent))
	t.bad.Add(uint64(bad))
	return err
}

// Stats returns the counters.
func (t *Tap) Stats() Stats {
	t.mu.Lock()
	s := Stats{Captured: t.capt}
	t.mu.Unlock()
	s.Injected, s.Deleted, s.Unencodable = t.injected.Load(), t.deleted.Load(), t.bad.Load()
	s.Guarded, s.Refresh = t.guarded.Load(), time.Duration(t.refresh.Load())
	_, s.BeatDelay = t.beats.last()
	s.InjectDrops = t.Lost()
	drops, err := os.ReadFile(filepath.Join("/sys/class/net", t.cfg.Interface, "statistics/tx_dropped"))
	if err == nil {
		s.CaptureDrops, _ = strconv.ParseUint(strings.TrimSpace(string(drops)), 10, 64)
	}
	return s
}

// Lost is how many datagrams the backup thread was too slow for or did not come
// to it though Inject had no error, and one for each time that somebody stopped
// it, since OpenTap and as far as was looked: as long as the tap is healthy,
// every two seconds. Of what they told nothing need be in the kernel.
func (t *Tap) Lost() uint64 { return t.inj.lost.Load() }

// LastBeat is when the last heartbeat came back; zero if none did.
func (t *Tap) LastBeat() time.Time {
	at, _ := t.beats.last()
	return at
}

// Healthy says whether captured records come without delay, or why not.
func (t *Tap) Healthy() (bool, string) {
	if p := t.problem.Load(); p != nil {
		return false, *p
	}
	return true, ""
}

// Close puts the kernel back as it was before the first Tap. Run must have
// returned.
func (t *Tap) Close() error {
	t.closeOnce.Do(func() { t.closeErr = t.close() })
	return t.closeErr
}

func (t *Tap) close() error {
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	if t.inj != nil {
		if !t.cfg.Keep {
			t.forgetBeats()
		}
		add(t.inj.close())
	}
	if t.pinger != nil {
		add(t.pinger.close())
	}
	if t.cfg.Keep {
		add(t.tun.Load().Close())
		add(t.client.Close())
		return errors.Join(errs...)
	}
	_, err := t.stopDaemons()
	add(err)
	if t.guarded.Load() {
		add(t.guard.remove())
	}
	add(removeTUN(t.tun.Load()))
	err = t.saved.restore()
	add(err)
	if err == nil && t.saved.Boot != "" {
		if err := os.Remove(t.cfg.StateFile); !errors.Is(err, fs.ErrNotExist) {
			add(err)
		}
	}
	add(t.client.Close())
	return errors.Join(errs...)
}

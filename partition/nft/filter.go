package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

var (
	// ErrNotSupported: the kernel lacks something; the error names it.
	ErrNotSupported = errors.New("not supported by this kernel")

	// ErrUnknown: a change was sent and what the kernel made of it could not
	// be read back. What is open may be the old share, the new one or none.
	// Until an Apply succeeds, Confirm refuses, so the lease runs out.
	ErrUnknown = errors.New("the state of the filter is unknown")

	// ErrGone: the table is not there, so nothing is admitted. Somebody
	// flushed the ruleset; Reset puts a closed one in place.
	ErrGone = errors.New("the filter's table is gone")

	// ErrNotArmed: the heartbeat is not armed, because it never was, was too
	// long ago, or is not newer than one armed before.
	ErrNotArmed = errors.New("heartbeat not armed")
)

// Desired is what a Filter admits while its lease lives.
type Desired struct {
	Open partition.Set // buckets of which packets that open a flow are ours
	Rest partition.Set // buckets of which other TCP and SCTP is ours; holds Open
}

// A Filter is our table in the kernel, and the lease. Its methods may be
// called from several goroutines: Arm and Confirm never wait for the others.
type Filter struct {
	cfg     Config
	table   *table
	secrets secrets
	renewer *renewer
	unknown atomic.Bool
	newest  atomic.Uint64 // the last n that was armed

	// write serialises transactions. It may be held as long as other people's
	// transactions take.
	write   sync.Mutex
	wconn   *nftables.Conn
	applied Desired

	// read serialises everything that only looks, which waits for nobody.
	read     sync.Mutex
	rconn    *nftables.Conn
	left     snapshot // the table as the last replacement left it
	verified uint32   // the ruleset's generation in which it was found so
	want     Desired  // the buckets that it must hold then
	pending  Desired  // or these, while a transaction is under way
	earlier  counts   // of the tables before this one
	last     counts   // as last read from this one
}

type counts [8]uint64 // in the order of counterNames

// Open puts the table in place, closed, in one transaction, replacing one
// that a crash left; and shows that the lease's datagrams reach it. The kernel
// is as it was if Open fails.
func Open(cfg Config) (_ *Filter, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.VIPs, cfg.MAC = slices.Clone(cfg.VIPs), slices.Clone(cfg.MAC)
	f := &Filter{cfg: cfg, table: newTable(cfg.Name), secrets: newSecrets()}
	if f.renewer, err = newRenewer(f.secrets.datagram); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, conn := range []**nftables.Conn{&f.wconn, &f.rconn} {
		if *conn, err = nftables.New(nftables.AsLasting()); err != nil {
			return nil, fmt.Errorf("nft: open a netlink socket: %w", err)
		}
	}
	if err := f.Reset(); err != nil {
		return nil, err
	}
	if err := f.tryRenewal(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reset replaces the table by a closed one, in one transaction, and reads it
// back. It is the cure for ErrGone and for a table that Verify finds changed.
func (f *Filter) Reset() error {
	f.write.Lock()
	defer f.write.Unlock()
	f.read.Lock()
	defer f.read.Unlock()
	f.table.remove(f.wconn)
	if err := f.table.declare(f.wconn, &f.cfg, renewalAddr.Port(), f.secrets); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	sent := f.wconn.Flush()
	d, err := f.readBuckets()
	if err == nil && !d.Rest.Empty() || sent != nil && !errors.Is(sent, unix.ENOBUFS) {
		return fmt.Errorf("nft: replace table %s: %w", f.cfg.Name, sent)
	}
	if err == nil {
		f.left, err = f.snapshot()
	}
	if err != nil {
		f.unknown.Store(true)
		return fmt.Errorf("nft: table %s: %w: %w", f.cfg.Name, ErrUnknown, errors.Join(sent, err))
	}
	for i := range f.last {
		f.earlier[i] += f.last[i]
	}
	f.last, f.verified = counts{}, 0
	f.applied, f.want, f.pending = Desired{}, Desired{}, Desired{}
	f.unknown.Store(false)
	return nil
}

// tryRenewal shows that a datagram meets the lease's rules and nothing before
// them.
func (f *Filter) tryRenewal() error {
	consumed, err := f.renewer.send(opArm, 0)
	if err != nil {
		return fmt.Errorf("nft: send to %v: %w; is the loopback interface up?", renewalAddr, err)
	}
	s, err := f.Stats()
	if err != nil {
		return err
	}
	if !consumed || s.Armed == 0 {
		return fmt.Errorf("nft: the lease's datagram to %v did not reach our rule: "+
			"some output chain of a priority below %d takes it; let it pass there", renewalAddr, leasePriority)
	}
	return nil
}

// Apply makes the kernel admit d, in one transaction, and reads it back: when
// it returns nil the kernel holds exactly d. It may wait as long as other
// people's transactions take; until it returns, either share may be in force.
// Errors: ErrGone, ErrUnknown, or what the kernel said, and then the share is
// what it was.
func (f *Filter) Apply(d Desired) error {
	if !d.Rest.Contains(d.Open) {
		return errors.New("nft: rest must hold all that is open")
	}
	if !partition.FullSet(f.cfg.Buckets).Contains(d.Rest) {
		return fmt.Errorf("nft: bucket beyond the last, %d", f.cfg.Buckets-1)
	}
	f.write.Lock()
	defer f.write.Unlock()
	f.setPending(d)
	// The second time, if somebody else has touched the sets, all is replaced.
	var err, rerr error
	var got Desired
	for _, whole := range []bool{f.unknown.Load(), true} {
		err = f.sendBuckets(d, whole)
		if got, rerr = f.readBack(d); rerr == nil && got == d || errors.Is(rerr, unix.ENOENT) {
			break
		}
	}
	switch {
	case errors.Is(rerr, unix.ENOENT):
		return fmt.Errorf("nft: table %s: %w", f.cfg.Name, ErrGone)
	case rerr == nil && got == d:
		f.setApplied(d)
		return nil
	case rerr == nil && got == f.applied && err != nil:
		f.setPending(got)
		return fmt.Errorf("nft: table %s: share not changed: %w", f.cfg.Name, err)
	}
	f.unknown.Store(true)
	return fmt.Errorf("nft: table %s: %w: %w", f.cfg.Name, ErrUnknown, errors.Join(err, rerr))
}

func (f *Filter) setPending(d Desired) {
	f.read.Lock()
	defer f.read.Unlock()
	f.pending = d
}

func (f *Filter) setApplied(d Desired) {
	f.read.Lock()
	defer f.read.Unlock()
	f.applied, f.want, f.verified = d, d, 0
	f.unknown.Store(false)
}

// sendBuckets sends one transaction that takes the sets to d: from what was
// applied, or from anything.
func (f *Filter) sendBuckets(d Desired, whole bool) error {
	have := f.applied
	if whole {
		have = Desired{}
		f.wconn.FlushSet(f.table.open)
		f.wconn.FlushSet(f.table.rest)
	}
	for _, change := range []struct {
		set        *nftables.Set
		want, have partition.Set
	}{{f.table.open, d.Open, have.Open}, {f.table.rest, d.Rest, have.Rest}} {
		if err := f.wconn.SetDeleteElements(change.set, elements(change.have.Minus(change.want))); err != nil {
			return err
		}
		if err := f.wconn.SetAddElements(change.set, elements(change.want.Minus(change.have))); err != nil {
			return err
		}
	}
	return f.wconn.Flush()
}

func (f *Filter) readBack(d Desired) (Desired, error) {
	f.read.Lock()
	defer f.read.Unlock()
	return f.readBackLocked(d)
}

// readBackLocked reads the buckets until they are d, a few times: a dump that
// another transaction interrupts may be incomplete.
func (f *Filter) readBackLocked(d Desired) (got Desired, err error) {
	for range 5 {
		got, err = f.readBuckets()
		if err == nil && got == d || errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return got, err
}

func (f *Filter) readBuckets() (d Desired, err error) {
	if d.Open, err = f.readSet(f.table.open); err != nil {
		return d, err
	}
	d.Rest, err = f.readSet(f.table.rest)
	return d, err
}

func (f *Filter) readSet(set *nftables.Set) (partition.Set, error) {
	var s partition.Set
	found, err := f.rconn.GetSetElements(set)
	if err != nil {
		return s, fmt.Errorf("read set %s: %w", set.Name, err)
	}
	for i := range found {
		b, err := bucketKey(found[i].Key)
		if err != nil {
			return s, fmt.Errorf("set %s: %w", set.Name, err)
		}
		s.Add(b)
	}
	return s, nil
}

// errStrange: an element that is not ours.
var errStrange = errors.New("somebody else's element")

func bucketKey(key []byte) (int, error) {
	if len(key) != 4 {
		return 0, fmt.Errorf("%w: key of %d bytes", errStrange, len(key))
	}
	b := binaryutil.NativeEndian.Uint32(key)
	if b >= partition.MaxBuckets {
		return 0, fmt.Errorf("%w: bucket %d", errStrange, b)
	}
	return int(b), nil
}

func elements(s partition.Set) []nftables.SetElement {
	var es []nftables.SetElement
	for b := range s.All() {
		es = append(es, nftables.SetElement{Key: host32(uint32(b))})
	}
	return es
}

// Settle makes the backstop silence unknown connections of the buckets for d
// from now, or no longer if d is 0. Other buckets keep the time they have. It
// is a transaction and may wait like Apply. Errors: ErrGone, or the kernel's.
func (f *Filter) Settle(buckets *partition.Set, d time.Duration) error {
	f.write.Lock()
	defer f.write.Unlock()
	f.read.Lock()
	now, err := f.rconn.GetSetElements(f.table.settling)
	f.read.Unlock()
	if err != nil {
		return f.gone("read settling buckets", err)
	}
	var next []nftables.SetElement
	for _, e := range now {
		if b, err := bucketKey(e.Key); err == nil && !buckets.Has(b) && e.Expires >= time.Millisecond {
			next = append(next, nftables.SetElement{Key: e.Key, Timeout: e.Expires})
		}
	}
	if d >= time.Millisecond {
		for b := range buckets.All() {
			next = append(next, nftables.SetElement{Key: host32(uint32(b)), Timeout: d})
		}
	}
	// An element that is there is not renewed by adding it, before Linux 6.12.
	f.wconn.FlushSet(f.table.settling)
	if err := f.wconn.SetAddElements(f.table.settling, next); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	if err := f.wconn.Flush(); err != nil && !errors.Is(err, unix.ENOBUFS) {
		return f.gone("set settling buckets", err)
	}
	return nil
}

func (f *Filter) gone(what string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nft: table %s: %w", f.cfg.Name, ErrGone)
	}
	return fmt.Errorf("nft: table %s: %s: %w", f.cfg.Name, what, err)
}

// Arm arms heartbeat n, which must be above every n before. Call it just
// before the heartbeat is sent: the lease that n may earn ends Config.Lease
// after now. It does not allocate and waits for no transaction. Errors:
// ErrGone, ErrNotArmed if n is not above the last.
func (f *Filter) Arm(n uint64) error {
	for {
		last := f.newest.Load()
		if n <= last {
			return ErrNotArmed
		}
		if f.newest.CompareAndSwap(last, n) {
			break
		}
	}
	consumed, err := f.renewer.send(opArm, n)
	switch {
	case err != nil:
		return fmt.Errorf("nft: arm heartbeat %d: %w", n, err)
	case !consumed:
		return ErrGone
	}
	return nil
}

// Confirm renews the lease if heartbeat n is still armed in the kernel. It
// does not allocate and waits for no transaction. Errors: ErrNotArmed, which
// is also the answer of a kernel without our table; ErrUnknown after an Apply
// that returned it.
func (f *Filter) Confirm(n uint64) error {
	if f.unknown.Load() {
		return ErrUnknown
	}
	if n == 0 || n > f.newest.Load() {
		return ErrNotArmed
	}
	consumed, err := f.renewer.send(opConfirm, n)
	switch {
	case err != nil:
		return fmt.Errorf("nft: confirm heartbeat %d: %w", n, err)
	case !consumed:
		return ErrNotArmed
	}
	return nil
}

// Stats is what the kernel counted since Open, in packets, and what it holds.
type Stats struct {
	Accepted  uint64 // admitted as ours, fragments apart
	Fragments uint64 // admitted to be judged when whole
	Foreign   uint64 // dropped: another director's
	Lapsed    uint64 // dropped: no live lease
	Own       uint64 // for a VIP to the interface's own MAC: served
	Silenced  uint64 // dropped by the backstop
	Armed     uint64 // heartbeats armed
	Confirmed uint64 // leases renewed

	OwnSender net.HardwareAddr // last sender to the own MAC within an hour, or nil
	Open      partition.Set
	Rest      partition.Set
	Settling  partition.Set
	LeaseLeft time.Duration // 0 when lapsed
	Intact    bool          // as Verify says
}

// Stats reads the kernel. Error: ErrGone, or the kernel's.
func (f *Filter) Stats() (Stats, error) {
	var s Stats
	f.read.Lock()
	defer f.read.Unlock()
	objs, err := f.rconn.GetNamedObjects(f.table.Table)
	if err != nil {
		return s, f.gone("read counters", err)
	}
	if len(objs) == 0 {
		return s, f.gone("read counters", unix.ENOENT)
	}
	for _, o := range objs {
		named, _ := o.(*nftables.NamedObj)
		if named == nil {
			continue
		}
		counter, _ := named.Obj.(*expr.Counter)
		if i := slices.Index(counterNames, named.Name); i >= 0 && counter != nil {
			f.last[i] = counter.Packets
		}
	}
	for i, to := range []*uint64{&s.Accepted, &s.Fragments, &s.Foreign, &s.Lapsed, &s.Own, &s.Silenced, &s.Armed, &s.Confirmed} {
		*to = f.earlier[i] + f.last[i]
	}
	d, err := f.readBuckets()
	if err != nil {
		return s, f.gone("read buckets", err)
	}
	s.Open, s.Rest = d.Open, d.Rest
	if s.Settling, err = f.readSet(f.table.settling); err != nil {
		return s, f.gone("read buckets", err)
	}
	lease, err := f.rconn.GetSetElements(f.table.lease)
	if err != nil {
		return s, f.gone("read the lease", err)
	}
	for _, e := range lease {
		s.LeaseLeft = max(s.LeaseLeft, e.Expires)
	}
	senders, err := f.rconn.GetSetElements(f.table.senders)
	if err != nil {
		return s, f.gone("read senders", err)
	}
	var newest time.Duration
	for _, e := range senders {
		if e.Expires > newest && len(e.Key) >= 6 {
			newest, s.OwnSender = e.Expires, e.Key[:6]
		}
	}
	s.Intact, err = f.verifyLocked()
	return s, err
}

// Verify reports whether the table is as Reset and Apply left it. If not,
// somebody else touched it: call Reset, which closes. It is cheap while nobody
// changes anything in this network namespace.
func (f *Filter) Verify() (bool, error) {
	f.read.Lock()
	defer f.read.Unlock()
	return f.verifyLocked()
}

func (f *Filter) verifyLocked() (bool, error) {
	gen, err := f.rconn.GetGen()
	if err != nil {
		return false, fmt.Errorf("nft: read the generation: %w", err)
	}
	if gen.ID == f.verified {
		return true, nil
	}
	now, err := f.snapshot()
	if errors.Is(err, unix.ENOENT) || err == nil && !now.equal(f.left) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("nft: read table %s: %w", f.cfg.Name, err)
	}
	switch got, err := f.readBackLocked(f.want); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, errStrange):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("nft: %w", err)
	case got == f.want:
		f.verified = gen.ID
	case got != f.pending:
		return false, nil
	}
	return true, nil
}

// A snapshot identifies what is in a table, buckets apart. The kernel gives
// each rule a handle, unique within the table and never changed, so the same
// handles in the same order are the same rules.
type snapshot []uint64

func (s snapshot) equal(t snapshot) bool { return slices.Equal(s, t) }

func (f *Filter) snapshot() (snapshot, error) {
	var s snapshot
	for _, half := range f.table.both() {
		all, err := f.rconn.ListChainsOfTableFamily(half.Family)
		if err != nil {
			return nil, err
		}
		before := len(s)
		for _, c := range all {
			if c.Table == nil || c.Table.Name != half.Name {
				continue
			}
			s = append(s, chainMark(c))
			rules, err := f.rconn.GetRules(half, c)
			if err != nil {
				return nil, err
			}
			for _, r := range rules {
				s = append(s, r.Handle)
			}
		}
		if len(s) == before {
			return nil, unix.ENOENT
		}
	}
	return s, nil
}

// chainMark packs a chain's place: hook, priority and policy.
func chainMark(c *nftables.Chain) uint64 {
	var b [8]byte
	if c.Hooknum != nil && c.Priority != nil {
		b[0], b[1] = 1, byte(*c.Hooknum)
		binary.BigEndian.PutUint32(b[4:], uint32(*c.Priority))
	}
	if c.Policy != nil {
		b[2] = 1 + byte(*c.Policy)
	}
	return binary.BigEndian.Uint64(b[:])
}

// Close removes the table and gives the lock back. It may be called twice.
func (f *Filter) Close() error {
	f.write.Lock()
	defer f.write.Unlock()
	var err error
	if f.wconn != nil {
		f.table.remove(f.wconn)
		if ferr := f.wconn.Flush(); ferr != nil {
			err = fmt.Errorf("nft: remove table %s: %w", f.cfg.Name, ferr)
		}
		err = errors.Join(err, f.wconn.CloseLasting())
		f.wconn = nil
	}
	f.read.Lock()
	defer f.read.Unlock()
	if f.rconn != nil {
		err = errors.Join(err, f.rconn.CloseLasting())
		f.rconn = nil
	}
	return errors.Join(err, f.renewer.close())
}

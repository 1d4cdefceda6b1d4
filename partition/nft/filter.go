package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
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

// A Filter is our table in the kernel, and the lease. Its methods may be
// called from several goroutines: Arm and Confirm never wait for the others.
type Filter struct {
	cfg     Config
	all     partition.Set // the buckets that there are
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

	earlierBuckets []BucketStats // of elements that were replaced
	earlierBytes   uint64        // likewise
	lastBuckets    []bucketCount // as last read
}

// Open puts the table in place, closed, in one transaction, replacing one
// that a crash left; and shows that the lease's datagrams reach it. The kernel
// is as it was if Open fails.
func Open(cfg Config) (_ *Filter, err error) {
	divider, err := cfg.check()
	if err != nil {
		return nil, err
	}
	cfg.Plan, cfg.MAC = divider.Plan, slices.Clone(cfg.MAC)
	f := &Filter{
		cfg: cfg, all: partition.FullSet(cfg.Plan.Buckets), table: newTable(cfg.Name, divider, cfg.Queues != nil), secrets: newSecrets(),
		earlierBuckets: make([]BucketStats, cfg.Plan.Buckets), lastBuckets: make([]bucketCount, cfg.Plan.Buckets),
	}
	f.table.build(&cfg, f.secrets, canDefrag())
	if f.renewer, err = newRenewer(cfg.renewalAddr(), f.secrets.datagram); err != nil {
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
	return f.resetLocked()
}

func (f *Filter) resetLocked() error {
	f.table.remove(f.wconn)
	if err := f.table.declare(f.wconn); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	sent := f.wconn.Flush()
	d, err := f.readBuckets()
	switch open := err == nil && !d.Rest.Empty(); {
	case open && sent == nil:
		err = fmt.Errorf("%w: %d buckets are open in a closed table", errStrange, d.Rest.Len())
	case open, sent != nil && !errors.Is(sent, unix.ENOBUFS):
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

// Replan replaces the table by a closed one that divides flows in another way,
// with as many buckets. If it fails the old one stays, or what is in the kernel
// is unknown, as after Reset.
func (f *Filter) Replan(p partition.Plan) error {
	f.write.Lock()
	defer f.write.Unlock()
	f.read.Lock()
	defer f.read.Unlock()
	cfg := f.cfg
	cfg.Plan = p
	divider, err := cfg.check()
	if err != nil {
		return err
	}
	if p.Buckets != f.cfg.Plan.Buckets {
		return fmt.Errorf("nft: %d buckets instead of %d: their number cannot change", p.Buckets, f.cfg.Plan.Buckets)
	}
	cfg.Plan = divider.Plan
	next := newTable(cfg.Name, divider, cfg.Queues != nil)
	next.build(&cfg, f.secrets, canDefrag())
	was, wasPlan := f.table, f.cfg.Plan
	f.table, f.cfg.Plan = next, cfg.Plan
	if err = f.resetLocked(); err != nil && !errors.Is(err, ErrUnknown) {
		f.table, f.cfg.Plan = was, wasPlan
	}
	return err
}

// tryRenewal shows that a datagram meets the lease's rules and nothing before
// them.
func (f *Filter) tryRenewal() error {
	consumed, err := f.renewer.send(opArm, 0)
	if err != nil {
		return fmt.Errorf("nft: send to %v: %w; is the loopback interface up?", f.cfg.renewalAddr(), err)
	}
	s, err := f.Stats()
	if err != nil {
		return err
	}
	if !consumed || s.Armed == 0 {
		return fmt.Errorf("nft: the lease's datagram to %v did not reach our rule: "+
			"some output chain of a priority below %d takes it; let it pass there", f.cfg.renewalAddr(), leasePriority)
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

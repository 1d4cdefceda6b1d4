package nft

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// Desired is what a Filter admits while its lease lives.
type Desired struct {
	Open partition.Set // buckets of which packets that open a flow are ours
	Rest partition.Set // buckets of which other TCP and SCTP is ours; holds Open
}

// A holding is what a director has of a bucket.
type holding uint8

const (
	foreign  holding = iota // nothing
	inMotion                // rest only: the bucket is on its way here, or away
	owned                   // open and rest
)

func (d *Desired) holding(b int) holding {
	switch {
	case d.Open.Has(b):
		return owned
	case d.Rest.Has(b):
		return inMotion
	}
	return foreign
}

// The maps open and rest, in this order, give each bucket the verdict of its
// packets. There are none where queues judge.
func (t *table) fateMaps() []*nftables.Set {
	if t.open == nil {
		return nil
	}
	return []*nftables.Set{t.open, t.rest}
}

// verdict is what both maps hold of a bucket. It names no chain: an element
// that did would make the kernel walk through all chains and all elements of
// all maps at each change (nft_chain_validate in net/netfilter/nf_tables_api.c),
// and a change would take a thousand times as long.
func (h holding) verdict() expr.VerdictKind {
	switch h {
	case owned:
		return expr.VerdictContinue // the rule goes on: to the chain ours
	case inMotion:
		return expr.VerdictReturn // to the caller, which goes to the chain moving
	}
	return expr.VerdictDrop
}

// elements returns what both maps must hold for some buckets.
func elements(buckets partition.Set, d Desired) []nftables.SetElement {
	es := make([]nftables.SetElement, 0, buckets.Len())
	for b := range buckets.All() {
		es = append(es, nftables.SetElement{
			Key: host32(uint32(b)), VerdictData: &expr.Verdict{Kind: d.holding(b).verdict()},
		})
	}
	return es
}

// errStrange: what is there is not ours.
var errStrange = errors.New("somebody else's element")

// verdictIn reads a verdict as GetSetElements leaves it: the attributes of
// enum nft_verdict_attributes in linux/netfilter/nf_tables.h.
func verdictIn(data []byte) (expr.VerdictKind, error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CODE {
			return expr.VerdictKind(int32(ad.Uint32())), nil
		}
	}
	return 0, cmp.Or(ad.Err(), fmt.Errorf("%w: no verdict", errStrange))
}

// holdingOf is the reverse of verdict.
func holdingOf(data []byte) (holding, error) {
	got, err := verdictIn(data)
	if err != nil {
		return 0, err
	}
	for _, h := range []holding{foreign, inMotion, owned} {
		if got == h.verdict() {
			return h, nil
		}
	}
	return 0, fmt.Errorf("%w: verdict %d", errStrange, got)
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
	if !f.all.Contains(d.Rest) {
		return fmt.Errorf("nft: bucket beyond the last, %d", f.all.Len()-1)
	}
	f.write.Lock()
	defer f.write.Unlock()
	f.setPending(d)
	// The second time, if somebody else has touched the maps, all is replaced.
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

// setPending also reads the buckets' counters, since a transaction that
// changes a bucket's element starts them anew.
func (f *Filter) setPending(d Desired) {
	f.read.Lock()
	defer f.read.Unlock()
	f.pending = d
	f.readBuckets() // for the counters only; what is wrong shows when d is read back
}

func (f *Filter) setApplied(d Desired) {
	f.read.Lock()
	defer f.read.Unlock()
	f.applied, f.want, f.verified = d, d, 0
	f.unknown.Store(false)
}

// sendBuckets sends one transaction that takes the maps to d: from what was
// applied, or from anything.
func (f *Filter) sendBuckets(d Desired, whole bool) error {
	var changed partition.Set
	for b := range f.all.All() {
		if whole || f.applied.holding(b) != d.holding(b) {
			changed.Add(b)
		}
	}
	for _, m := range f.table.fateMaps() {
		if whole {
			f.wconn.FlushSet(m)
		} else if err := f.wconn.SetDeleteElements(m, elements(changed, f.applied)); err != nil {
			return err
		}
		if err := f.wconn.SetAddElements(m, elements(changed, d)); err != nil {
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

// readBuckets reads both maps, and counts what they counted.
func (f *Filter) readBuckets() (d Desired, err error) {
	if f.cfg.Queues != nil {
		return d, nil
	}
	n := f.cfg.Plan.Buckets
	now := make([]bucketCount, n)
	seen := make([][2]bool, n)
	for i, m := range f.table.fateMaps() {
		found, err := f.rconn.GetSetElements(m)
		if err != nil {
			return d, fmt.Errorf("read map %s: %w", m.Name, err)
		}
		for _, e := range found {
			b, err := f.bucketKey(e.Key)
			if err != nil {
				return d, fmt.Errorf("map %s: %w", m.Name, err)
			}
			h, err := holdingOf(e.Val)
			if err != nil {
				return d, fmt.Errorf("map %s: bucket %d: %w", m.Name, b, err)
			}
			if i > 0 && seen[b][0] && now[b].holding != h {
				return d, fmt.Errorf("%w: bucket %d differs between the maps", errStrange, b)
			}
			seen[b][i] = true
			now[b].holding = h
			if e.Counter != nil {
				now[b].packets[i] = e.Counter.Packets
				now[b].bytes += e.Counter.Bytes
			}
		}
	}
	for b := range now {
		if seen[b] != [2]bool{true, true} {
			return d, fmt.Errorf("%w: bucket %d is missing", errStrange, b)
		}
		if now[b].holding == owned {
			d.Open.Add(b)
		}
		if now[b].holding >= inMotion {
			d.Rest.Add(b)
		}
	}
	f.counted(now)
	return d, nil
}

func (f *Filter) bucketKey(key []byte) (int, error) {
	if len(key) != 4 {
		return 0, fmt.Errorf("%w: key of %d bytes", errStrange, len(key))
	}
	b := int(binaryutil.NativeEndian.Uint32(key))
	if !f.all.Has(b) {
		return 0, fmt.Errorf("%w: bucket %d", errStrange, b)
	}
	return b, nil
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
		if b, err := f.bucketKey(e.Key); err == nil && !buckets.Has(b) && e.Expires >= time.Millisecond {
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

// readSettling returns the buckets that settle.
func (f *Filter) readSettling() (partition.Set, error) {
	var s partition.Set
	found, err := f.rconn.GetSetElements(f.table.settling)
	if err != nil {
		return s, fmt.Errorf("read set %s: %w", f.table.settling.Name, err)
	}
	for _, e := range found {
		b, err := f.bucketKey(e.Key)
		if err != nil {
			return s, fmt.Errorf("set %s: %w", f.table.settling.Name, err)
		}
		s.Add(b)
	}
	return s, nil
}

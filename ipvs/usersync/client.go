package usersync

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"

	"saru/conntable"
)

// ErrNotLoaded is in the chain of errors that mean that the module is not
// there, or no more.
var ErrNotLoaded = errors.New("kernel module ip_vs_user_sync is not loaded")

// ErrVersion is in the chain of the error for a module of another version.
var ErrVersion = errors.New("kernel module ip_vs_user_sync has another version of its protocol")

// family is what the controller says of ours.
type family struct {
	id            uint16
	events        uint32 // multicast group
	notifications uint32 // multicast group of the controller
}

// resolve asks for the family, which makes the kernel load the module where it
// is installed.
func resolve() (family, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return family{}, fmt.Errorf("open generic netlink: %w", err)
	}
	defer conn.Close()
	ours, err := conn.GetFamily(Family)
	if errors.Is(err, fs.ErrNotExist) {
		return family{}, fmt.Errorf("generic netlink family %s: %w; load it with \"modprobe ip_vs_user_sync\"", Family, ErrNotLoaded)
	}
	if err != nil {
		return family{}, fmt.Errorf("generic netlink family %s: %w", Family, err)
	}
	if ours.Version != Version {
		return family{}, fmt.Errorf("generic netlink family %s: %w: %d, this program speaks %d; install the module that belongs to this program",
			Family, ErrVersion, ours.Version, Version)
	}
	f := family{id: ours.ID}
	if f.notifications, err = controllersGroup(conn); err != nil {
		return family{}, err
	}
	for _, g := range ours.Groups {
		if g.Name == groupEvents {
			f.events = g.ID
		}
	}
	if f.events == 0 {
		return family{}, fmt.Errorf("generic netlink family %s: no group %q: %w", Family, groupEvents, ErrVersion)
	}
	return f, nil
}

// controllersGroup returns the multicast group in which the controller tells
// of families that come and go.
func controllersGroup(conn *genetlink.Conn) (uint32, error) {
	ctrl, err := conn.GetFamily("nlctrl")
	if err != nil {
		return 0, fmt.Errorf("generic netlink family nlctrl: %w", err)
	}
	for _, g := range ctrl.Groups {
		if g.Name == "notify" {
			return g.ID, nil
		}
	}
	return 0, errors.New("generic netlink family nlctrl: no group \"notify\"")
}

// A Client sends commands, in the network namespace in which it was dialled.
// It is safe for concurrent use. When the module is unloaded its errors are
// ErrNotLoaded, and it stays so: dial again for the next one.
type Client struct {
	family family

	mu   sync.Mutex
	sock *socket // under mu

	dumpMu sync.Mutex
	dump   *socket // under dumpMu; commands go on during a dump
}

// Dial connects to the module. The error is ErrNotLoaded or ErrVersion if it
// is not there or not ours.
func Dial() (*Client, error) {
	f, err := resolve()
	if err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	d, err := openSocket()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &Client{family: f, sock: s, dump: d}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return errors.Join(c.sock.close(), c.dump.close()) }

// named adds what was tried, and says what an errno means here.
func named(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTONOSUPPORT):
		// The family's number is nobody's any more, or the module is just
		// going away (__netlink_dump_start).
		err = fmt.Errorf("%w: %w", ErrNotLoaded, err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("needs CAP_NET_ADMIN: %w", err)
	}
	return fmt.Errorf("IPVS_SYNC %s: %w", what, err)
}

func (c *Client) request(what string, cmd uint8, attrs []byte, fn func(attrs []byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.sock.send(c.family.id, unix.NLM_F_ACK, cmd, attrs)
	if err == nil {
		err = c.sock.answers(fn)
	}
	return named(what, err)
}

// Get returns the entry of the key, false if there is none.
func (c *Client) Get(key conntable.Key) (Record, bool, error) {
	conn := conntable.Connection{Key: key}
	attrs := nested(nil, attrConn, func(b []byte) []byte { return appendKey(b, &conn) })
	var d decoder
	found := false
	err := c.request("get", cmdGet, attrs, func(attrs []byte) error {
		_, err := d.conn(attrs)
		found = err == nil
		d.rec.PEData = append([]byte(nil), d.rec.PEData...)
		return err
	})
	if errors.Is(err, unix.ESRCH) {
		return Record{}, false, nil
	}
	return d.rec, found, err
}

// A Filter chooses entries of a dump; the zero value chooses all.
type Filter struct {
	Protocol uint8          // 0: any
	Virtual  netip.AddrPort // address invalid or port 0: any
	Dest     netip.AddrPort // address invalid or port 0: any
}

func (f Filter) attrs() []byte {
	if f == (Filter{}) {
		return nil
	}
	return nested(nil, attrConn, func(b []byte) []byte {
		if f.Protocol != 0 {
			b = appendAttr(b, connProtocol, f.Protocol)
		}
		if f.Virtual.Addr().IsValid() {
			b = appendAttr(b, connVAddr, f.Virtual.Addr().AsSlice()...)
		}
		if f.Virtual.Port() != 0 {
			b = appendPort(b, connVPort, f.Virtual.Port())
		}
		if f.Dest.Addr().IsValid() {
			b = appendAttr(b, connDAddr, f.Dest.Addr().AsSlice()...)
		}
		if f.Dest.Port() != 0 {
			b = appendPort(b, connDPort, f.Dest.Port())
		}
		return b
	})
}

// Dump calls fn with each entry of the kernel's table; the record and what it
// points to are valid during the call only. It is no snapshot, but an entry
// that is in the table all the time is told at least once. After an error of fn,
// which it returns, it reads the rest without calling fn again.
func (c *Client) Dump(filter Filter, fn func(*Record) error) error {
	c.dumpMu.Lock()
	defer c.dumpMu.Unlock()
	if err := c.dump.send(c.family.id, unix.NLM_F_DUMP, cmdGet, filter.attrs()); err != nil {
		return named("dump", err)
	}
	var d decoder
	err := c.dump.answers(func(attrs []byte) error {
		rec, err := d.conn(attrs)
		if err != nil {
			return err
		}
		return fn(rec)
	})
	return named("dump", err)
}

// A Change is an entry to be made or updated. Of the Connection all but
// FlagSync counts; its Timeout is at least a millisecond.
type Change struct {
	*conntable.Connection
	Remaining time.Duration // until it expires if nothing comes; 0: Timeout
	Packets   *uint32       // the packet count to set; nil: 0 for a new entry, else as it is
	Expect    *uint32       // refuse with EBUSY if the entry has another packet count; nil: do not look
}

// A Result says what became of one connection of Create or Delete.
type Result int32

// Err is nil, or the errno with which the kernel refused: EBUSY if Expect was
// not met or the entry is in use, ENOENT if it does not exist, ESTALE if the
// news of an inactive connection are about another real server, ERANGE for a
// state or timeout that cannot be, EPROTONOSUPPORT, EAFNOSUPPORT, ENOPROTOOPT
// without the persistence engine, EINVAL, ENOMEM.
func (r Result) Err() error {
	if r >= 0 {
		return nil
	}
	return unix.Errno(-r)
}

// Created says that there was no such entry before.
func (r Result) Created() bool { return r >= 0 && r&resultCreated != 0 }

// Bound says that the entry belongs to one of a real server, and is counted
// there. Without, it forwards all the same, but not by tunnel.
func (r Result) Bound() bool { return r >= 0 && r&resultBound != 0 }

// Create makes or updates entries, and appends the result of each to dst. Each
// is bound to its real server if the service is there. After an error the
// results tell how far it came.
func (c *Client) Create(dst []Result, changes []Change) ([]Result, error) {
	return each(c, "create", cmdCreate, dst, changes, func(b []byte, ch *Change) []byte {
		b = appendState(appendDest(appendKey(b, ch.Connection), ch.Dest), ch)
		return appendExpect(b, ch)
	})
}

// Delete deletes entries, and appends the result of each to dst. Of a Change
// the Key counts, the PEData of a template, Expect, and Dest if it is valid:
// then only an entry with this real server is deleted. The entry is gone when
// Delete returns; one that controls others, or whose packet is just being
// handled, is refused with EBUSY.
func (c *Client) Delete(dst []Result, changes []Change) ([]Result, error) {
	return each(c, "delete", cmdDelete, dst, changes, func(b []byte, ch *Change) []byte {
		b = appendKey(b, ch.Connection)
		if ch.Dest.IsValid() {
			b = appendDest(b, ch.Dest)
		}
		return appendExpect(b, ch)
	})
}

func appendExpect(b []byte, ch *Change) []byte {
	if ch.Expect == nil {
		return b
	}
	return appendU32(b, connExpectPkts, *ch.Expect)
}

// each sends changes, some at a time, and collects the results.
func each(c *Client, what string, cmd uint8, dst []Result, changes []Change, put func([]byte, *Change) []byte) ([]Result, error) {
	var attrs []byte
	for len(changes) > 0 {
		n := min(len(changes), MaxConns)
		attrs = attrs[:0]
		for i := range changes[:n] {
			if err := check(changes[i].Connection); err != nil {
				return dst, fmt.Errorf("IPVS_SYNC %s: %w", what, err)
			}
			attrs = nested(attrs, attrConn, func(b []byte) []byte { return put(b, &changes[i]) })
		}
		got := 0
		err := c.request(what, cmd, attrs, func(attrs []byte) (err error) {
			dst, got, err = appendResults(dst, attrs)
			return err
		})
		if err == nil && got != n {
			err = fmt.Errorf("IPVS_SYNC %s: %d results for %d connections: %w", what, got, n, ErrMalformed)
		}
		if err != nil {
			return dst, err
		}
		changes = changes[n:]
	}
	return dst, nil
}

// check refuses what no message can carry.
func check(c *conntable.Connection) error {
	switch {
	case !c.Client.Addr().IsValid() || !c.Virtual.Addr().IsValid():
		return fmt.Errorf("connection %v to %v: no address", c.Client, c.Virtual)
	case len(c.PEName) > maxPEName || len(c.PEData) > maxPEData:
		return fmt.Errorf("connection %v to %v: persistence data too long", c.Client, c.Virtual)
	}
	return nil
}

func appendResults(dst []Result, attrs []byte) ([]Result, int, error) {
	n := 0
	for len(attrs) > 0 {
		kind, v, rest, err := nextAttr(attrs)
		if err != nil {
			return dst, n, err
		}
		attrs = rest
		if kind != attrResults {
			continue
		}
		if len(v)%4 != 0 {
			return dst, n, malformed("results", len(v))
		}
		for ; len(v) > 0; v = v[4:] {
			dst = append(dst, Result(native.Uint32(v)))
			n++
		}
	}
	return dst, n, nil
}

// Stats are the module's counters for this network namespace.
type Stats struct {
	New, State, Update, Adopted, Expired uint64 // events told

	Coalesced uint64 // events told with the one before
	Batches   uint64 // messages sent
	Overruns  uint64 // messages for which some listener's queue was full
	Dropped   uint64 // events lost for want of memory or room

	Created, Updated, Deleted, Refused uint64 // connections of commands

	Connections uint64 // entries that exist
	TableSize   uint64 // hash buckets, of all namespaces
}

// Stats asks for the module's counters.
func (c *Client) Stats() (Stats, error) {
	var st Stats
	err := c.request("stats", cmdStats, nil, st.decode)
	return st, err
}

func (s *Stats) decode(attrs []byte) error {
	// By attribute number, from 2 on.
	fields := [...]*uint64{
		&s.New, &s.State, &s.Update, &s.Adopted, &s.Expired,
		&s.Coalesced, &s.Batches, &s.Overruns, &s.Dropped,
		&s.Created, &s.Updated, &s.Deleted, &s.Refused,
		&s.Connections, &s.TableSize,
	}
	for len(attrs) > 0 {
		kind, v, rest, err := nextAttr(attrs)
		if err != nil {
			return err
		}
		attrs = rest
		if kind != attrStats {
			continue
		}
		for len(v) > 0 {
			kind, value, more, err := nextAttr(v)
			if err != nil {
				return err
			}
			v = more
			if kind < 2 || kind >= 2+len(fields) {
				continue
			}
			if len(value) != 8 {
				return malformed("counter", len(value))
			}
			*fields[kind-2] = native.Uint64(value)
		}
	}
	return nil
}

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Client speaks with the kernel's IPVS over generic netlink, in the network
// namespace in which it was dialled. It is safe for concurrent use.
type Client struct {
	conn   *genetlink.Conn
	family uint16
}

// Dial connects to the kernel. Asking for the family makes a kernel that has
// IPVS as a module load it, if it can. The error is ErrNotSupported if the
// kernel has no IPVS.
func Dial() (*Client, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	c, err := NewClient(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// NewClient is Dial over a connection that the caller made; the Client owns
// it only if there is no error.
func NewClient(conn *genetlink.Conn) (*Client, error) {
	f, err := conn.GetFamily(familyName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("generic netlink family %q: %w", familyName, ErrNotSupported)
	}
	if err != nil {
		return nil, fmt.Errorf("generic netlink family %q: %w", familyName, err)
	}
	return &Client{conn, f.ID}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Info is what the kernel says of its IPVS.
type Info struct {
	Major, Minor, Patch uint8
	TableSize           uint32 // buckets of the connection hash table
}

// Info asks for the kernel's IPVS version and table size.
func (c *Client) Info() (Info, error) {
	msgs, err := c.execute(cmdGetInfo, 0, nil)
	if err != nil {
		return Info{}, named("IPVS info", err, nil)
	}
	if len(msgs) != 1 {
		return Info{}, fmt.Errorf("IPVS info: %d answers", len(msgs))
	}
	var info Info
	ad, err := netlink.NewAttributeDecoder(msgs[0].Data)
	if err != nil {
		return Info{}, fmt.Errorf("IPVS info: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case infoVersion:
			v := ad.Uint32()
			info.Major, info.Minor, info.Patch = uint8(v>>16), uint8(v>>8), uint8(v)
		case infoTableSize:
			info.TableSize = ad.Uint32()
		}
	}
	return info, ad.Err()
}

// Flags of a service (IP_VS_SVC_F_*).
const (
	ServicePersistent = 0x0001
	ServiceHashed     = 0x0002
	ServiceOnePacket  = 0x0004
)

// A Service is a virtual service.
type Service struct {
	Family    uint16         // unix.AF_INET or AF_INET6
	Protocol  uint8          // IANA number; 0 with FWMark
	Addr      netip.AddrPort // invalid with FWMark
	FWMark    uint32         // 0 if the service is an address
	Scheduler string
	Flags     uint32
	Timeout   uint32 // persistence, seconds
	Netmask   uint32 // persistence; IPv4: the mask in network byte order; IPv6: prefix length
	PEName    string
}

// Services lists the virtual services.
func (c *Client) Services() ([]Service, error) {
	msgs, err := c.execute(cmdGetService, netlink.Dump, nil)
	if err != nil {
		return nil, named("list virtual services", err, nil)
	}
	var out []Service
	err = each(msgs, attrService, func(ad *netlink.AttributeDecoder) error {
		var s Service
		var addr []byte
		var port uint16
		for ad.Next() {
			switch ad.Type() {
			case svcAF:
				s.Family = ad.Uint16()
			case svcProtocol:
				s.Protocol = uint8(ad.Uint16())
			case svcAddr:
				addr = ad.Bytes()
			case svcPort:
				port = bigEndian16(ad.Bytes())
			case svcFWMark:
				s.FWMark = ad.Uint32()
			case svcScheduler:
				s.Scheduler = ad.String()
			case svcFlags:
				if b := ad.Bytes(); len(b) >= 4 {
					s.Flags = binary.NativeEndian.Uint32(b)
				}
			case svcTimeout:
				s.Timeout = ad.Uint32()
			case svcNetmask:
				s.Netmask = ad.Uint32()
			case svcPEName:
				s.PEName = ad.String()
			}
		}
		if s.FWMark == 0 {
			a, err := address(s.Family, addr)
			if err != nil {
				return err
			}
			s.Addr = netip.AddrPortFrom(a, port)
		}
		out = append(out, s)
		return ad.Err()
	})
	return out, named("list virtual services", err, nil)
}

// A Dest is a real server of a service.
type Dest struct {
	Addr                        netip.AddrPort
	Forward                     uint32 // conntable.FlagFwd...
	Weight                      uint32
	Upper, Lower                uint32 // connection thresholds
	Active, Inactive, Persisted uint32 // connections
}

// Dests lists the real servers of s; none if there is no such service.
func (c *Client) Dests(s Service) ([]Dest, error) {
	what := fmt.Sprintf("list real servers of %v", s.Addr)
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, func(ae *netlink.AttributeEncoder) error {
		ae.Uint16(svcAF, s.Family)
		if s.FWMark != 0 {
			ae.Uint32(svcFWMark, s.FWMark)
			return nil
		}
		addr := make([]byte, 16)
		copy(addr, s.Addr.Addr().AsSlice())
		ae.Uint16(svcProtocol, uint16(s.Protocol))
		ae.Bytes(svcAddr, addr)
		ae.Bytes(svcPort, binary.BigEndian.AppendUint16(nil, s.Addr.Port()))
		return nil
	})
	msgs, err := c.encode(cmdGetDest, netlink.Dump, ae)
	if err != nil {
		return nil, named(what, err, nil)
	}
	var out []Dest
	err = each(msgs, attrDest, func(ad *netlink.AttributeDecoder) error {
		var d Dest
		var addr []byte
		var port uint16
		family := s.Family
		for ad.Next() {
			switch ad.Type() {
			case destAddr:
				addr = ad.Bytes()
			case destPort:
				port = bigEndian16(ad.Bytes())
			case destAF:
				family = ad.Uint16()
			case destFwd:
				d.Forward = ad.Uint32()
			case destWeight:
				d.Weight = ad.Uint32()
			case destUThresh:
				d.Upper = ad.Uint32()
			case destLThresh:
				d.Lower = ad.Uint32()
			case destActive:
				d.Active = ad.Uint32()
			case destInactive:
				d.Inactive = ad.Uint32()
			case destPersist:
				d.Persisted = ad.Uint32()
			}
		}
		a, err := address(family, addr)
		if err != nil {
			return err
		}
		d.Addr = netip.AddrPortFrom(a, port)
		out = append(out, d)
		return ad.Err()
	})
	return out, named(what, err, nil)
}

// A Role is which of the two sync threads a Daemon is.
type Role uint32

// The sync threads (IP_VS_STATE_*).
const (
	Master Role = 1 // sends
	Backup Role = 2 // receives
)

func (r Role) String() string {
	switch r {
	case Master:
		return "master"
	case Backup:
		return "backup"
	}
	return fmt.Sprintf("role %d", uint32(r))
}

// A Daemon is one of the kernel's sync threads.
type Daemon struct {
	Role      Role
	Interface string
	SyncID    uint8      // Backup: accepts only this one, 0 accepts all
	MaxLen    uint16     // bytes of UDP payload; 0 lets the kernel choose
	Group     netip.Addr // multicast; invalid means 224.0.0.81
	Port      uint16     // 0 means 8848
	TTL       uint8      // 0 means 1
}

// Daemons lists the sync threads that run in this network namespace.
func (c *Client) Daemons() ([]Daemon, error) {
	msgs, err := c.execute(cmdGetDaemon, netlink.Dump, nil)
	if err != nil {
		return nil, named("list sync threads", err, nil)
	}
	var out []Daemon
	err = each(msgs, attrDaemon, func(ad *netlink.AttributeDecoder) error {
		var d Daemon
		for ad.Next() {
			switch ad.Type() {
			case daemonState:
				d.Role = Role(ad.Uint32())
			case daemonIface:
				d.Interface = ad.String()
			case daemonSyncID:
				d.SyncID = uint8(ad.Uint32())
			case daemonMaxLen:
				d.MaxLen = ad.Uint16()
			case daemonGroup, daemonGroup6:
				d.Group, _ = netip.AddrFromSlice(ad.Bytes())
			case daemonPort:
				d.Port = ad.Uint16()
			case daemonTTL:
				d.TTL = ad.Uint8()
			}
		}
		out = append(out, d)
		return ad.Err()
	})
	return out, named("list sync threads", err, nil)
}

// StartDaemon starts a sync thread. The error is unix.EEXIST if one of that
// role runs, ENODEV if there is no such interface.
func (c *Client) StartDaemon(d Daemon) error {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDaemon, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(daemonState, uint32(d.Role))
		ae.String(daemonIface, d.Interface)
		ae.Uint32(daemonSyncID, uint32(d.SyncID))
		if d.MaxLen != 0 {
			ae.Uint16(daemonMaxLen, d.MaxLen)
		}
		switch {
		case d.Group.Is4():
			ae.Bytes(daemonGroup, d.Group.AsSlice())
		case d.Group.Is6():
			ae.Bytes(daemonGroup6, d.Group.AsSlice())
		}
		if d.Port != 0 {
			ae.Uint16(daemonPort, d.Port)
		}
		if d.TTL != 0 {
			ae.Uint8(daemonTTL, d.TTL)
		}
		return nil
	})
	_, err := c.encode(cmdNewDaemon, netlink.Acknowledge, ae)
	return named(fmt.Sprintf("start the %s sync thread on %q", d.Role, d.Interface), err, map[unix.Errno]string{
		unix.EEXIST: "one runs already",
		unix.ENODEV: "no such interface",
		unix.EINVAL: "the kernel refuses the settings, or a service has real servers of both address families",
	})
}

// stopAnswer is how long StopDaemon waits for the answer. The kernel gives it
// before it returns from the request, if at all.
const stopAnswer = 3 * time.Second

// StopDaemon stops the sync thread of that role. Records that a master has
// not sent are lost. The error is unix.ESRCH if none runs.
//
// The kernel does not answer if the thread had not begun to run: kthread_stop
// returns EINTR then, for which netlink_rcv_skb (net/netlink/af_netlink.c)
// sends no acknowledgement. The thread is gone all the same.
func (c *Client) StopDaemon(r Role) error {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDaemon, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(daemonState, uint32(r))
		return nil
	})
	data, err := ae.Encode()
	if err != nil {
		return err
	}
	request, err := c.conn.Send(message(cmdDelDaemon, data), c.family, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return named(fmt.Sprintf("stop the %s sync thread", r), err, nil)
	}
	// From now on: the request itself takes as long as the thread goes on, and its
	// answer is there when it is over. One that was left unread would be taken for
	// that of the next request; nobody else makes one meanwhile (Tap).
	c.conn.SetReadDeadline(time.Now().Add(stopAnswer)) // fails only on what is no socket
	_, answer, err := c.conn.Receive()
	c.conn.SetReadDeadline(time.Time{})
	if err == nil {
		err = netlink.Validate(request, answer)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return c.stopped(r, err)
	}
	return named(fmt.Sprintf("stop the %s sync thread", r), err, map[unix.Errno]string{unix.ESRCH: "none runs"})
}

// stopped returns err if there is still a sync thread of that role.
func (c *Client) stopped(r Role, err error) error {
	daemons, e := c.Daemons()
	if e != nil {
		return errors.Join(err, e)
	}
	for _, d := range daemons {
		if d.Role == r {
			return fmt.Errorf("stop the %s sync thread: %w", r, err)
		}
	}
	return nil
}

func (c *Client) encode(cmd uint8, flags netlink.HeaderFlags, ae *netlink.AttributeEncoder) ([]genetlink.Message, error) {
	data, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	return c.execute(cmd, flags, data)
}

func (c *Client) execute(cmd uint8, flags netlink.HeaderFlags, data []byte) ([]genetlink.Message, error) {
	return c.conn.Execute(message(cmd, data), c.family, netlink.Request|flags)
}

func message(cmd uint8, data []byte) genetlink.Message {
	return genetlink.Message{Header: genetlink.Header{Command: cmd, Version: familyVersion}, Data: data}
}

// each calls fn with the nested attribute kind of each message.
func each(msgs []genetlink.Message, kind uint16, fn func(*netlink.AttributeDecoder) error) error {
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == kind {
				ad.Nested(fn)
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

func address(family uint16, b []byte) (netip.Addr, error) {
	n := 4
	if family == unix.AF_INET6 {
		n = 16
	}
	if len(b) < n {
		return netip.Addr{}, fmt.Errorf("address of %d bytes for family %d", len(b), family)
	}
	a, _ := netip.AddrFromSlice(b[:n])
	return a, nil
}

func bigEndian16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

package kernelsync

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"saru/conntable"
)

// AppendMessage appends one version 1 message to dst: as many of conns, from
// the first on, as fit into max bytes (HeaderSize to MaxSize) and MaxRecords
// records. It returns the extended slice and how many of conns the message
// holds. It returns an error, and dst as it was, only if conns[0] itself
// cannot be told: then the caller skips it.
//
// Flags go out as they are: the receiver masks them. Timeout is rounded up to
// whole seconds; 0 lets the receiver use its own table.
func AppendMessage(dst []byte, syncID uint8, max int, conns []conntable.Connection) ([]byte, int, error) {
	start := len(dst)
	max = min(max, MaxSize)
	dst = append(dst, 0, syncID, 0, 0, 0, version1, 0, 0)
	n, end := 0, len(dst)
	for n < len(conns) && n < MaxRecords {
		c := &conns[n]
		length, err := recordLen(c)
		at := start + round4(end-start)
		if err == nil && at+length-start > max {
			err = fmt.Errorf("kernelsync: record of %d bytes does not fit a message of %d", length, max)
		}
		if err != nil {
			if n == 0 {
				return dst[:start], 0, err
			}
			break
		}
		for len(dst) < at {
			dst = append(dst, 0)
		}
		dst = appendRecord(dst, c, length)
		end = len(dst)
		n++
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16(end-start))
	dst[start+4] = uint8(n)
	return dst, n, nil
}

// recordLen returns the length of c's record, or why it has none.
func recordLen(c *conntable.Connection) (int, error) {
	n := RecordSize4
	client, virtual, dest := c.Client.Addr(), c.Virtual.Addr(), c.Dest.Addr()
	switch {
	case client.Is4() && virtual.Is4() && dest.Is4():
	case client.Is6() && virtual.Is6() && dest.Is6():
		n = RecordSize6
	default:
		return 0, fmt.Errorf("kernelsync: addresses %v, %v and %v are not of one family", client, virtual, dest)
	}
	if c.Seq != nil {
		n += 2 + seqDataSize
	}
	if len(c.PEName) > maxPEName {
		return 0, fmt.Errorf("kernelsync: persistence engine name of %d bytes; at most %d", len(c.PEName), maxPEName)
	}
	if len(c.PEData) > maxPEData {
		return 0, fmt.Errorf("kernelsync: persistence data of %d bytes; at most %d", len(c.PEData), maxPEData)
	}
	if len(c.PEData) > 0 {
		n += 2 + len(c.PEData)
	}
	if c.PEName != "" {
		n += 2 + len(c.PEName)
	}
	return n, nil
}

func appendRecord(dst []byte, c *conntable.Connection, length int) []byte {
	kind := uint8(0)
	if c.Client.Addr().Is6() {
		kind = typeIPv6
	}
	flags := c.Flags
	if c.Template {
		flags |= conntable.FlagTemplate
	}
	dst = append(dst, kind, c.Protocol)
	dst = binary.BigEndian.AppendUint16(dst, uint16(length))
	dst = binary.BigEndian.AppendUint32(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, c.State)
	dst = binary.BigEndian.AppendUint16(dst, c.Client.Port())
	dst = binary.BigEndian.AppendUint16(dst, c.Virtual.Port())
	dst = binary.BigEndian.AppendUint16(dst, c.Dest.Port())
	dst = binary.BigEndian.AppendUint32(dst, c.FWMark)
	dst = binary.BigEndian.AppendUint32(dst, seconds(c.Timeout))
	dst = appendAddr(dst, c.Client.Addr())
	dst = appendAddr(dst, c.Virtual.Addr())
	dst = appendAddr(dst, c.Dest.Addr())
	if c.Seq != nil {
		dst = append(dst, optSeqData, seqDataSize)
		dst = appendSeq(dst, c.Seq.In)
		dst = appendSeq(dst, c.Seq.Out)
	}
	if len(c.PEData) > 0 {
		dst = append(dst, optPEData, uint8(len(c.PEData)))
		dst = append(dst, c.PEData...)
	}
	if c.PEName != "" {
		dst = append(dst, optPEName, uint8(len(c.PEName)))
		dst = append(dst, c.PEName...)
	}
	return dst
}

func appendAddr(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(dst, b[:]...)
	}
	b := a.As16()
	return append(dst, b[:]...)
}

func appendSeq(dst []byte, s conntable.Seq) []byte {
	dst = binary.BigEndian.AppendUint32(dst, s.Init)
	dst = binary.BigEndian.AppendUint32(dst, s.Delta)
	return binary.BigEndian.AppendUint32(dst, s.Prev)
}

func seconds(d time.Duration) uint32 {
	d = max(d, 0)
	s := d / time.Second
	if d%time.Second > 0 {
		s++
	}
	return uint32(min(s, math.MaxUint32))
}

package kernelsync

import (
	"encoding/binary"
	"errors"
	"fmt"

	"saru/conntable"
)

// ErrVersion0 says that version 0 has no way to tell a connection.
var ErrVersion0 = errors.New("kernelsync: version 0 cannot tell it")

// AppendMessage0 is AppendMessage for version 0, as kernels before 2.6.39 and
// those with sync_version=0 speak it: IPv4 only, without timeout, fwmark and
// persistence data, so the receiver uses its own tables of timeouts. Only the
// low 16 bits of Flags go out.
func AppendMessage0(dst []byte, syncID uint8, max int, conns []conntable.Connection) ([]byte, int, error) {
	start := len(dst)
	max = min(max, MaxSize)
	dst = append(dst, 0, syncID, 0, 0)
	n := 0
	for n < len(conns) && n < MaxRecords {
		length, err := recordLen0(&conns[n])
		if err == nil && len(dst)+length-start > max {
			err = fmt.Errorf("kernelsync: record of %d bytes does not fit a message of %d", length, max)
		}
		if err != nil {
			if n == 0 {
				return dst[:start], 0, err
			}
			break
		}
		dst = appendRecord0(dst, &conns[n])
		n++
	}
	dst[start] = uint8(n)
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start))
	return dst, n, nil
}

func recordLen0(c *conntable.Connection) (int, error) {
	client, virtual, dest := c.Client.Addr(), c.Virtual.Addr(), c.Dest.Addr()
	switch {
	case !client.Is4() || !virtual.Is4() || !dest.Is4():
		return 0, fmt.Errorf("%w: addresses %v, %v and %v are not IPv4", ErrVersion0, client, virtual, dest)
	case c.PEName != "" || len(c.PEData) > 0:
		return 0, fmt.Errorf("%w: it has persistence data", ErrVersion0)
	case c.Seq != nil && c.Flags&conntable.FlagSeqMask != 0:
		return recordSizeV0 + seqDataSize, nil
	}
	return recordSizeV0, nil
}

func appendRecord0(dst []byte, c *conntable.Connection) []byte {
	flags := c.Flags
	if c.Template {
		flags |= conntable.FlagTemplate
	}
	if c.Seq == nil {
		flags &^= conntable.FlagSeqMask // it says that sequence data follows
	}
	dst = append(dst, 0, c.Protocol)
	dst = binary.BigEndian.AppendUint16(dst, c.Client.Port())
	dst = binary.BigEndian.AppendUint16(dst, c.Virtual.Port())
	dst = binary.BigEndian.AppendUint16(dst, c.Dest.Port())
	dst = appendAddr(dst, c.Client.Addr())
	dst = appendAddr(dst, c.Virtual.Addr())
	dst = appendAddr(dst, c.Dest.Addr())
	dst = binary.BigEndian.AppendUint16(dst, uint16(flags))
	dst = binary.BigEndian.AppendUint16(dst, c.State)
	if flags&conntable.FlagSeqMask != 0 {
		for _, s := range [2]conntable.Seq{c.Seq.In, c.Seq.Out} {
			dst = binary.NativeEndian.AppendUint32(dst, s.Init)
			dst = binary.NativeEndian.AppendUint32(dst, s.Delta)
			dst = binary.NativeEndian.AppendUint32(dst, s.Prev)
		}
	}
	return dst
}

package firstpacket

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The messages of nfnetlink_queue (linux/netfilter/nfnetlink_queue.h): the
// netlink header and attributes' heads in the host's order, the rest in the
// network's.
const (
	headerLen = 20 // nlmsghdr 16, nfgenmsg 4
	attrLen   = 4

	subsystem  = unix.NFNL_SUBSYS_QUEUE << 8
	msgPacket  = subsystem
	msgVerdict = subsystem | 1
	msgConfig  = subsystem | 2

	attrPacketHeader = 1
	attrVerdict      = 2
	attrPayload      = 10

	attrCommand = 1
	attrParams  = 2
	attrMaxLen  = 3
	attrMask    = 4
	attrFlags   = 5

	commandBind   = 1
	copyPacket    = 2
	flagFailOpen  = 1
	verdictAccept = 1
)

var errMessage = errors.New("defer: not a message of nfnetlink_queue")

func align(n int) int { return (n + 3) &^ 3 }

// message begins a message; attribute appends to it, end sets its length.
func message(kind uint16, queue uint16, flags uint16) []byte {
	b := make([]byte, 0, 64)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(b, make([]byte, 8)...) // sequence, port
	b = append(b, unix.AF_UNSPEC, 0)  // version 0
	return binary.BigEndian.AppendUint16(b, queue)
}

func attribute(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

func end(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func bindMessage(queue uint16, waiting, copied uint32) []byte {
	b := message(msgConfig, queue, unix.NLM_F_ACK)
	b = attribute(b, attrCommand, commandBind, 0, 0, 0)
	b = attribute(b, attrMaxLen, u32(waiting)...)
	b = attribute(b, attrMask, u32(flagFailOpen)...)
	b = attribute(b, attrFlags, u32(flagFailOpen)...)
	b = attribute(b, attrParams, append(u32(copied), copyPacket)...)
	return end(b)
}

func verdictMessage(queue uint16, id uint32) []byte {
	return end(attribute(message(msgVerdict, queue, 0), attrVerdict, append(u32(verdictAccept), u32(id)...)...))
}

// next cuts the first message off b. answer says that it is one to a message
// of ours, with its errno. Of a packet ok is false if it is not a TCP segment
// that a rule of ours could have queued; its ID is right all the same.
func next(b []byte) (p Packet, ok, answer bool, errno unix.Errno, rest []byte, err error) {
	if len(b) < headerLen {
		return p, false, false, 0, nil, errMessage
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < headerLen || n > len(b) {
		return p, false, false, 0, nil, errMessage
	}
	m, rest := b[:n], b[min(align(n), len(b)):]
	switch binary.NativeEndian.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		return p, false, true, unix.Errno(-int32(binary.NativeEndian.Uint32(m[16:]))), rest, nil
	case msgPacket:
	default:
		return p, false, false, 0, nil, errMessage
	}
	numbered := false
	for a := m[headerLen:]; len(a) >= attrLen; {
		n := int(binary.NativeEndian.Uint16(a))
		if n < attrLen || n > len(a) {
			return p, false, false, 0, nil, errMessage
		}
		v := a[attrLen:n]
		switch binary.NativeEndian.Uint16(a[2:]) &^ unix.NLA_F_NESTED {
		case attrPacketHeader:
			if len(v) < 4 {
				return p, false, false, 0, nil, errMessage
			}
			p.ID, numbered = binary.BigEndian.Uint32(v), true
		case attrPayload:
			p.Client, p.Target, ok = ends(v)
		}
		a = a[min(align(n), len(a)):]
	}
	if !numbered {
		return p, false, false, 0, nil, errMessage
	}
	return p, ok, false, 0, rest, nil
}

// ends reads both ends of a TCP segment from its IP header on.
func ends(b []byte) (from, to netip.AddrPort, ok bool) {
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[min(int(b[0]&15)*4, len(b)):]
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
	}
	if !src.IsValid() || len(b) < 4 {
		return from, to, false
	}
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])), true
}

package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The messages of nfnetlink_queue, as in linux/netfilter/nfnetlink.h and
// linux/netfilter/nfnetlink_queue.h. Offsets in bytes; the netlink header is in
// the host's order, what follows in the network's:
//
//	 0 length 4    4 type 2: subsystem 3, message    6 flags 2
//	 8 sequence 4 12 port 4
//	16 family 1   17 version 1, 0                   18 queue 2
//	20 attributes: length 2, type 2 (host order), value, padded to 4
const (
	headerLen = 20
	attrLen   = 4

	subsystem      = unix.NFNL_SUBSYS_QUEUE << 8
	msgPacket      = subsystem
	msgVerdict     = subsystem | 1
	msgConfig      = subsystem | 2
	msgVerdictMany = subsystem | 3 // all up to a number

	// Of a packet, and of a verdict.
	attrPacketHeader = 1  // number 4, ethertype 2, hook 1
	attrVerdict      = 2  // verdict 4, number 4
	attrPayload      = 10 // from the IP header on
	attrWholeLength  = 13 // 4, if the payload was cut

	// Of a configuration.
	attrCommand  = 1 // command 1, padding 1, family 2
	attrParams   = 2 // how much to copy 4, mode 1
	attrMaxLen   = 3 // packets 4
	attrMask     = 4 // flags 4
	attrFlags    = 5 // flags 4
	commandBind  = 1
	copyPacket   = 2
	flagFailOpen = 1
	flagGSO      = 4 // what was received as one is judged as one

	verdictDrop   = 0
	verdictAccept = 1
)

// A queued packet.
type queued struct {
	id    uint32
	head  []byte // from the IP header on, as much as was copied
	whole int    // its length
}

// A message is one of a datagram: a packet, or what the kernel says of a
// message of ours.
type message struct {
	queued
	answer   bool   // to the message of sequence
	sequence uint32 // of it
	err      error  // nil: it was done
}

var errMessage = errors.New("queue: not a message of nfnetlink_queue")

// parse reads the first message of b and returns the rest of b. It does not
// allocate for packets.
func parse(b []byte) (m message, rest []byte, err error) {
	if len(b) < headerLen {
		return m, nil, errMessage
	}
	size := int(binary.NativeEndian.Uint32(b))
	if size < headerLen || size > len(b) {
		return m, nil, errMessage
	}
	msg, rest := b[:size], b[min(align(size), len(b)):]
	switch binary.NativeEndian.Uint16(b[4:]) {
	case msgPacket:
		m.queued, err = parseQueued(msg[headerLen:])
		return m, rest, err
	case unix.NLMSG_ERROR:
		m.answer, m.sequence = true, binary.NativeEndian.Uint32(msg[8:])
		if errno := -int32(binary.NativeEndian.Uint32(msg[16:])); errno != 0 {
			m.err = unix.Errno(errno)
		}
		return m, rest, nil
	}
	return m, nil, errMessage
}

func parseQueued(b []byte) (q queued, err error) {
	numbered := false
	for len(b) >= attrLen {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attrLen || size > len(b) {
			return q, errMessage
		}
		switch v := b[attrLen:size]; binary.NativeEndian.Uint16(b[2:]) &^ unix.NLA_F_NESTED {
		case attrPacketHeader:
			if len(v) < 7 {
				return q, errMessage
			}
			q.id, numbered = binary.BigEndian.Uint32(v), true
		case attrPayload:
			q.head = v
		case attrWholeLength:
			if len(v) < 4 {
				return q, errMessage
			}
			q.whole = int(binary.BigEndian.Uint32(v))
		}
		b = b[min(align(size), len(b)):]
	}
	if !numbered {
		return q, errMessage
	}
	q.whole = max(q.whole, len(q.head))
	return q, nil
}

func align(n int) int { return (n + 3) &^ 3 }

// begin appends a message's header; end sets its length.
func begin(b []byte, msg, flags uint16, sequence uint32, queue uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, msg)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = append(b, 0, 0, 0, 0, unix.AF_UNSPEC, 0)
	return binary.BigEndian.AppendUint16(b, queue)
}

func end(b []byte, start int) []byte {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendAttr(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// appendVerdict appends a verdict for one packet, or, with msgVerdictMany, for
// all up to it.
func appendVerdict(b []byte, msg, queue uint16, verdict, id uint32) []byte {
	start := len(b)
	b = begin(b, msg, 0, 0, queue)
	b = binary.NativeEndian.AppendUint16(b, attrLen+8)
	b = binary.NativeEndian.AppendUint16(b, attrVerdict)
	b = binary.BigEndian.AppendUint32(b, verdict)
	return end(binary.BigEndian.AppendUint32(b, id), start)
}

// appendBind appends what takes a queue: without a mode of copying yet, the
// kernel drops what comes.
func appendBind(b []byte, sequence uint32, queue uint16, maxLen uint32) []byte {
	start := len(b)
	b = begin(b, msgConfig, unix.NLM_F_ACK, sequence, queue)
	b = appendAttr(b, attrCommand, commandBind, 0, 0, 0)
	b = appendAttr(b, attrMaxLen, binary.BigEndian.AppendUint32(nil, maxLen)...)
	b = appendAttr(b, attrMask, binary.BigEndian.AppendUint32(nil, flagFailOpen|flagGSO)...)
	return end(appendAttr(b, attrFlags, binary.BigEndian.AppendUint32(nil, flagGSO)...), start)
}

// appendListen appends what makes packets come, with so much of each.
func appendListen(b []byte, sequence uint32, queue uint16, copied uint32) []byte {
	start := len(b)
	b = begin(b, msgConfig, unix.NLM_F_ACK, sequence, queue)
	return end(appendAttr(b, attrParams, append(binary.BigEndian.AppendUint32(nil, copied), copyPacket)...), start)
}

// bindError explains why a queue was not given. The kernel says EPERM of one
// that another socket has (nfqnl_recv_config in
// net/netfilter/nfnetlink_queue.c), as it does without CAP_NET_ADMIN.
func bindError(queue uint16, err error) error {
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("queue: number %d is taken by another program of this network namespace, "+
			"whose port is in /proc/net/netfilter/nfnetlink_queue: %w", queue, err)
	}
	return fmt.Errorf("queue: take number %d: %w", queue, err)
}

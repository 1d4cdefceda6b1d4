package nft

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules are written as lists of small phrases, each a few expressions.
//
// A rule may read a register only after it wrote it itself (newer kernels
// refuse the rule otherwise), so each computes what it looks up.

// Registers of four bytes. A key starts at keyReg and may take eleven of them:
// two IPv6 addresses, two ports and a protocol.
const (
	keyReg    = unix.NFT_REG32_00
	bucketReg = unix.NFT_REG32_12
)

type phrase = []expr.Any

func rule(phrases ...phrase) phrase { return slices.Concat(phrases...) }

// Where a field is counted from.
const (
	linkHeader      = expr.PayloadBaseLLHeader
	networkHeader   = expr.PayloadBaseNetworkHeader
	transportHeader = expr.PayloadBaseTransportHeader
)

func load(base expr.PayloadBase, reg, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func compare(op expr.CmpOp, want ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: want}
}

// matchBytes compares bytes of the packet. A packet that ends before them does
// not match, whatever the comparison.
func matchBytes(base expr.PayloadBase, offset uint32, op expr.CmpOp, want ...byte) phrase {
	return phrase{load(base, unix.NFT_REG_1, offset, uint32(len(want))), compare(op, want...)}
}

// matchBits compares bytes of the packet under a mask.
func matchBits(base expr.PayloadBase, offset uint32, mask []byte, op expr.CmpOp, want ...byte) phrase {
	return phrase{
		load(base, unix.NFT_REG_1, offset, uint32(len(mask))), and(unix.NFT_REG_1, mask), compare(op, want...),
	}
}

func and(reg uint32, mask []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}
}

func transport(offset uint32, want ...byte) phrase {
	return matchBytes(transportHeader, offset, expr.CmpOpEq, want...)
}

func transportNot(offset uint32, want ...byte) phrase {
	return matchBytes(transportHeader, offset, expr.CmpOpNeq, want...)
}

// toMAC matches frames to this address, or, with CmpOpNeq, to any other.
func toMAC(mac []byte, op expr.CmpOp) phrase { return matchBytes(linkHeader, 0, op, mac...) }

// toAll matches Ethernet broadcast and multicast: the group bit is set.
func toAll() phrase { return matchBits(linkHeader, 0, []byte{1}, expr.CmpOpEq, 1) }

func meta(key expr.MetaKey, want ...byte) phrase {
	return phrase{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, compare(expr.CmpOpEq, want...)}
}

func l4(proto byte) phrase { return meta(expr.MetaKeyL4PROTO, proto) }

// tcpOpens matches a SYN without an ACK if opens is true, else all other TCP.
// Four bytes are read, since the kernel is quicker at four than at one.
func tcpOpens(opens bool) phrase {
	const dataOffset, syn, ack = 12, 0x02, 0x10 // the flags are the byte behind it
	op := expr.CmpOpEq
	if !opens {
		op = expr.CmpOpNeq
	}
	return matchBits(transportHeader, dataOffset, []byte{0, syn | ack, 0, 0}, op, 0, syn, 0, 0)
}

// sctpOpens matches an INIT chunk (RFC 9260 section 3.2), always alone, if
// opens is true, else all other SCTP.
func sctpOpens(opens bool) phrase {
	const chunk, init = 12, 1
	if opens {
		return transport(chunk, init)
	}
	return transportNot(chunk, init)
}

func in(set *nftables.Set, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID}
}

func notIn(set *nftables.Set, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID, Invert: true}
}

// fateIn does what a map says of the key in reg. A key that is not there leaves
// the rule without a match.
func fateIn(verdicts *nftables.Set, reg uint32) expr.Any {
	return valueIn(verdicts, reg, unix.NFT_REG_VERDICT)
}

// valueIn puts what a map holds for the key in reg into another register.
func valueIn(m *nftables.Set, reg, to uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: to, IsDestRegSet: true, SetName: m.Name, SetID: m.ID}
}

func immediate(reg uint32, data ...byte) expr.Any {
	return &expr.Immediate{Register: reg, Data: data}
}

// update renews the element whose key is in reg, or adds it. The rule ends
// there if the set is full.
func update(set *nftables.Set, reg uint32, timeout time.Duration) expr.Any {
	return &expr.Dynset{
		SrcRegKey: reg, SetName: set.Name, SetID: set.ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout,
	}
}

// faster matches what exceeds so many packets a second, a quarter of a second's
// worth of them at once.
func faster(perSecond int) phrase {
	return phrase{&expr.Limit{
		Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond,
		Burst: uint32(max(perSecond/4, 1)), Over: true,
	}}
}

func count(name string) phrase {
	return phrase{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}
}

// constant puts four bytes into a register that the rule has written before:
// without the masked rest of it. The kernel does that in place, where an
// immediate is a call and a copy.
func constant(reg uint32, value [4]byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: make([]byte, 4), Xor: value[:]}
}

// setPriorityBy is setPriority by a register that the rule has written before.
func setPriorityBy(reg uint32, value [4]byte) phrase {
	return phrase{constant(reg, value), &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg, SourceRegister: true}}
}

// setPriority writes skb->priority, which is 0 on what arrives.
func setPriority(value [4]byte) phrase {
	return phrase{
		immediate(unix.NFT_REG_1, value[:]...),
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// asHost makes the packet this host's, by a register that the rule has written
// before: the positive act.
func asHost(reg uint32) phrase {
	return phrase{
		constant(reg, [4]byte{unix.PACKET_HOST}),
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg, SourceRegister: true},
	}
}

func accept() phrase { return phrase{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() phrase { return phrase{&expr.Verdict{Kind: expr.VerdictDrop}} }

// jump comes back if the chain returns; goTo does not: what the chain returns
// to is the chain that was last left by a jump.
func jump(chain string) phrase { return phrase{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

func goTo(chain string) phrase { return phrase{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

func host32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func host16(v uint16) []byte { return binaryutil.NativeEndian.PutUint16(v) }

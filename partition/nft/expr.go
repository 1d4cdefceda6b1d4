package nft

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// Rules are written as lists of small phrases, each a few expressions.

// Registers of four bytes. The key of a hash starts at keyReg and may take
// ten of them (two IPv6 addresses and two ports).
const (
	keyReg    = unix.NFT_REG32_00
	bucketReg = unix.NFT_REG32_12
)

type phrase = []expr.Any

func rule(phrases ...phrase) phrase { return slices.Concat(phrases...) }

func matchBytes(base expr.PayloadBase, offset uint32, want []byte, op expr.CmpOp) phrase {
	return phrase{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: want},
	}
}

func link(offset uint32, want []byte) phrase {
	return matchBytes(expr.PayloadBaseLLHeader, offset, want, expr.CmpOpEq)
}

// toAll matches Ethernet broadcast and multicast: the group bit is set.
func toAll() phrase {
	return phrase{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{1}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{1}},
	}
}

func transport(offset uint32, want ...byte) phrase {
	return matchBytes(expr.PayloadBaseTransportHeader, offset, want, expr.CmpOpEq)
}

func transportNot(offset uint32, want ...byte) phrase {
	return matchBytes(expr.PayloadBaseTransportHeader, offset, want, expr.CmpOpNeq)
}

func meta(key expr.MetaKey, want ...byte) phrase {
	return phrase{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: want},
	}
}

func l4(proto byte) phrase { return meta(expr.MetaKeyL4PROTO, proto) }

func ipv4() phrase {
	return meta(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP)...)
}

// tcpOpens matches a SYN without an ACK if opens is true, else all other TCP.
func tcpOpens(opens bool) phrase {
	const flags, syn, ack = 13, 0x02, 0x10
	op := expr.CmpOpEq
	if !opens {
		op = expr.CmpOpNeq
	}
	return phrase{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: []byte{syn}},
	}
}

// fragment matches IPv4 fragments, the first one too (RFC 791 section 3.1:
// more fragments, or a fragment offset).
func fragment() phrase {
	return phrase{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{0, 0}},
	}
}

func load(base expr.PayloadBase, reg, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func in(set *nftables.Set, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID}
}

func notIn(set *nftables.Set, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID, Invert: true}
}

func toVIP(vips *nftables.Set) phrase {
	return phrase{load(expr.PayloadBaseNetworkHeader, keyReg, 16, 4), in(vips, keyReg)}
}

func immediate(reg uint32, data ...byte) expr.Any {
	return &expr.Immediate{Register: reg, Data: data}
}

// update renews the element whose key is in reg, or adds it.
func update(set *nftables.Set, reg uint32, timeout time.Duration) expr.Any {
	return &expr.Dynset{
		SrcRegKey: reg, SetName: set.Name, SetID: set.ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout,
	}
}

// bucketOf leaves the bucket of a packet with ports in bucketReg. It is
// partition.Hash.Bucket, for the kernel.
func bucketOf(h partition.Hash) phrase {
	var key phrase
	reg := uint32(keyReg)
	field := func(sense partition.Sense, base expr.PayloadBase, offset, length uint32) {
		if h.Sense&sense != 0 {
			key = append(key, load(base, reg, offset, length))
			reg++
		}
	}
	field(partition.SrcAddr, expr.PayloadBaseNetworkHeader, 12, 4)
	field(partition.DstAddr, expr.PayloadBaseNetworkHeader, 16, 4)
	field(partition.SrcPort, expr.PayloadBaseTransportHeader, 0, 2)
	field(partition.DstPort, expr.PayloadBaseTransportHeader, 2, 2)
	return append(key, jenkins(h, 4*(reg-keyReg)))
}

// addrBucketOf leaves the bucket of a packet without ports in bucketReg. It is
// partition.Hash.AddrBucket, for the kernel.
func addrBucketOf(h partition.Hash) phrase {
	return phrase{load(expr.PayloadBaseNetworkHeader, keyReg, 12, 4), jenkins(h, 4)}
}

func jenkins(h partition.Hash, length uint32) expr.Any {
	return &expr.Hash{
		SourceRegister: keyReg, DestRegister: bucketReg, Length: length,
		Modulus: uint32(h.Buckets), Seed: h.Seed, Type: expr.HashTypeJenkins,
	}
}

func count(name string) phrase {
	return phrase{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}
}

// pass gives the packet what the gate asks for.
func pass(s secrets) phrase { return setPriority(s.pass) }

// setPriority writes skb->priority, which is 0 on what arrives.
func setPriority(value [4]byte) phrase {
	return phrase{
		immediate(unix.NFT_REG_1, value[:]...),
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

// asHost makes the packet this host's: the positive act.
func asHost() phrase {
	return phrase{
		immediate(unix.NFT_REG_1, unix.PACKET_HOST),
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: unix.NFT_REG_1, SourceRegister: true},
	}
}

func verdict(kind expr.VerdictKind, chain ...string) phrase {
	v := &expr.Verdict{Kind: kind}
	if len(chain) > 0 {
		v.Chain = chain[0]
	}
	return phrase{v}
}

func host32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func host16(v uint16) []byte { return binaryutil.NativeEndian.PutUint16(v) }

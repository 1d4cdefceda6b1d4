package forward

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The program of the Fence, in the instructions of linux/bpf.h. It reads a
// packet by the legacy loads, which need no proof of bounds: one beyond its end
// ends the program with 0, "accept", of a packet that the IP layer drops.
//
//	r6 = context
//	IPv4: r7 = destination        of each VIP: r8 = r7 & mask; equal? mark
//	IPv6: of each VIP: words of the destination & mask, all equal? mark
//	leave
//	mark: bpf_skb_change_type(r6, PACKET_OTHERHOST)
//	leave: return -1, "go on with the next filter"
type program struct {
	code  []byte
	marks []int // jumps whose target is the mark
}

const (
	r0 = iota
	r1
	r2
	_
	_
	_
	r6
	r7
	r8

	movX     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	movK     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	andK     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K // of 32 bits
	jumpEq   = unix.BPF_JMP32 | unix.BPF_JEQ | unix.BPF_K
	jumpNot  = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	jump     = unix.BPF_JMP | unix.BPF_JA
	loadAbs  = unix.BPF_LD | unix.BPF_ABS | unix.BPF_W
	loadMem  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	call     = unix.BPF_JMP | unix.BPF_CALL
	exit     = unix.BPF_JMP | unix.BPF_EXIT
	insnSize = 8

	protocolOffset = 16        // of __sk_buff.protocol, in network order
	networkHeader  = -0x100000 // SKF_NET_OFF
	changeType     = 32        // BPF_FUNC_skb_change_type
	goOn           = -1        // TC_ACT_UNSPEC
)

func (p *program) len() int { return len(p.code) / insnSize }

func (p *program) emit(op, dst, src byte, off int16, imm int32) {
	p.code = append(p.code, op, dst|src<<4)
	p.code = binary.NativeEndian.AppendUint16(p.code, uint16(off))
	p.code = binary.NativeEndian.AppendUint32(p.code, uint32(imm))
}

// aim makes the jump at one instruction go to another.
func (p *program) aim(from, to int) {
	binary.NativeEndian.PutUint16(p.code[from*insnSize+2:], uint16(int16(to-from-1)))
}

// assemble returns the program that makes what is for vips another host's.
func assemble(vips []netip.Prefix) []byte {
	p := &program{}
	p.emit(movX, r6, r1, 0, 0)
	p.emit(loadMem, r0, r6, protocolOffset, 0)
	var leave []int
	for _, is4 := range []bool{true, false} {
		ether := uint16(unix.ETH_P_IPV6)
		if is4 {
			ether = unix.ETH_P_IP
		}
		other := p.len()
		p.emit(jumpNot, r0, 0, 0, int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ether))))
		if is4 {
			p.emit(loadAbs, 0, 0, 0, networkHeader+16)
			p.emit(movX, r7, r0, 0, 0)
		}
		for _, v := range vips {
			if v.Addr().Is4() == is4 && is4 {
				p.match4(v)
			} else if v.Addr().Is4() == is4 {
				p.match6(v)
			}
		}
		leave = append(leave, p.len())
		p.emit(jump, 0, 0, 0, 0)
		p.aim(other, p.len())
	}
	leave = append(leave, p.len())
	p.emit(jump, 0, 0, 0, 0)
	mark := p.len()
	p.emit(movX, r1, r6, 0, 0)
	p.emit(movK, r2, 0, 0, unix.PACKET_OTHERHOST)
	p.emit(call, 0, 0, 0, changeType)
	for _, at := range p.marks {
		p.aim(at, mark)
	}
	for _, at := range leave {
		p.aim(at, p.len())
	}
	p.emit(movK, r0, 0, 0, goOn)
	p.emit(exit, 0, 0, 0, 0)
	return p.code
}

// match4 marks if the address in r7 is in v.
func (p *program) match4(v netip.Prefix) {
	a := v.Masked().Addr().As4()
	p.emit(movX, r8, r7, 0, 0)
	p.emit(andK, r8, 0, 0, int32(maskOf(v.Bits())))
	p.marks = append(p.marks, p.len())
	p.emit(jumpEq, r8, 0, 0, int32(binary.BigEndian.Uint32(a[:])))
}

// match6 marks if the destination is in v.
func (p *program) match6(v netip.Prefix) {
	a := v.Masked().Addr().As16()
	var not []int
	for i := 0; i*32 < v.Bits(); i++ {
		p.emit(loadAbs, 0, 0, 0, int32(networkHeader+24+4*i))
		p.emit(andK, r0, 0, 0, int32(maskOf(min(32, v.Bits()-32*i))))
		not = append(not, p.len())
		p.emit(jumpNot, r0, 0, 0, int32(binary.BigEndian.Uint32(a[4*i:])))
	}
	p.marks = append(p.marks, p.len())
	p.emit(jump, 0, 0, 0, 0)
	for _, at := range not {
		p.aim(at, p.len())
	}
}

func maskOf(bits int) uint32 { return uint32(uint64(0xffffffff) << (32 - bits)) }

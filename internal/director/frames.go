package director

import (
	"encoding/binary"
	"net"

	"golang.org/x/net/bpf"

	"saru/internal/packet"
)

// packetHost is the type of a frame to the interface's own MAC: PACKET_HOST of
// include/uapi/linux/if_packet.h.
const packetHost = 0

// onlyTo lets a packet socket receive nothing but frames to one address, and to
// the interface's own: a socket of an interface gets those to the other shares'
// MACs, too.
func onlyTo(fd int, mac net.HardwareAddr) error {
	return packet.Only(fd,
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: packetHost, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(mac), SkipTrue: 3},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	)
}

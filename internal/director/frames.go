package director

import (
	"encoding/binary"
	"net"

	"golang.org/x/net/bpf"

	"saru/internal/packet"
)

// onlyTo lets a packet socket receive nothing but frames to one address: a
// socket of an interface gets those to the other shares' MACs, too.
func onlyTo(fd int, mac net.HardwareAddr) error {
	return packet.Only(fd,
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(mac), SkipTrue: 3},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	)
}

package packet

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A socket with a filter hears what the program picks, and nothing else.
func TestOnly(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	err = Only(pair[0],
		bpf.LoadAbsolute{Off: 0, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 'y', SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16}, bpf.RetConstant{Val: 0})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"no", "yes", "never"} {
		_ = unix.Send(pair[1], []byte(s), 0) // EPERM for what is filtered
	}
	var buf [16]byte
	if n, err := unix.Read(pair[0], buf[:]); err != nil || string(buf[:n]) != "yes" {
		t.Errorf("read %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Read(pair[0], buf[:]); err != unix.EAGAIN {
		t.Errorf("read %q as well, %v", buf[:max(n, 0)], err)
	}
	if Only(pair[0]) == nil {
		t.Error("an empty program was taken")
	}
}

func TestNetworkOrder(t *testing.T) {
	if got := binary.NativeEndian.AppendUint16(nil, NetworkOrder(0x88b5)); got[0] != 0x88 || got[1] != 0xb5 {
		t.Errorf("in memory it is % x", got)
	}
}

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

// emitted are connections that no traffic of a test can make, but which the
// kernel takes and tells of again at a packet.
func emitted() map[string]conntable.Connection {
	at := func(proto uint8, client, virtual, dest string) conntable.Connection {
		var c conntable.Connection
		c.Protocol, c.Timeout = proto, 300*time.Second
		c.Client, c.Virtual, c.Dest = netip.MustParseAddrPort(client), netip.MustParseAddrPort(virtual), netip.MustParseAddrPort(dest)
		return c
	}
	masq := at(kernelsync.ProtoUDP, "127.82.0.2:9001", "127.82.0.1:9000", "10.82.0.5:9005")
	masq.Flags = conntable.FlagFwdMasq | conntable.FlagSeqMask
	masq.Seq = &conntable.SeqPair{In: conntable.Seq{Init: 1, Delta: 2, Prev: 3}, Out: conntable.Seq{Init: 0xfffffffe, Delta: 0x80000000, Prev: 7}}
	tunnel := at(kernelsync.ProtoUDP, "127.82.0.2:9002", "127.82.0.1:9000", "10.82.0.6:9000")
	tunnel.Flags, tunnel.FWMark = conntable.FlagFwdTunnel|conntable.FlagNoOutput, 0xfeedf00d
	six := at(kernelsync.ProtoUDP, "[2001:db8::100]:9004", "[2001:db8::100]:9000", "[2001:db8::5]:9000")
	six.Flags = conntable.FlagFwdGate
	sctp := at(kernelsync.ProtoSCTP, "127.82.0.2:9005", "127.82.0.1:9000", "10.82.0.8:9000")
	sctp.Flags, sctp.State, sctp.Timeout = conntable.FlagFwdGate, 8, 15*time.Minute // ESTABLISHED
	return map[string]conntable.Connection{"masq with sequence data": masq, "tunnel with a mark": tunnel, "IPv6": six, "SCTP": sctp}
}

// TestEmitted: the kernel tells of what it was told as it was told, in both
// versions of its protocol: flags, mark, sequence data, IPv6, SCTP.
// With -v it prints the messages, for kernelsync's testdata.
func TestEmitted(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "-6", "addr", "add", vip6+"/128", "dev", "lo", "nodad").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Without an IPv6 service the kernel does not look at IPv6 packets.
	if err := ipvsadm("-A", "-t", "["+vip6+"]:80", "-s", "rr"); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"1", "0"} {
		t.Run("version "+version, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.MaxLen = 1472
			tap := speaking(t, cfg, version)
			want := map[conntable.Key]conntable.Connection{}
			for name, c := range emitted() {
				if version == "0" {
					// It has no options but these, no IPv6, mark or timeout.
					if c.Client.Addr().Is6() {
						continue
					}
					c.FWMark = 0
				}
				if _, bad, err := tap.inj.inject([]conntable.Connection{c}); bad > 0 || err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				eventually(t, name+" in the table", func() bool { _, ok, _ := inTable(c.Key); return ok })
				if err := packetOf(&c); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				want[c.Key] = c
			}
			told := map[conntable.Key]conntable.Connection{}
			for _, c := range messages(t, tap) {
				told[c.Key] = c
			}
			for key, w := range want {
				got, ok := told[key]
				got.Flags &^= conntable.FlagSync
				if version == "0" {
					w.Timeout = 0
				} else {
					got.Flags &= conntable.FlagBackupMask
				}
				if !ok || !reflect.DeepEqual(got, w) {
					t.Errorf("the kernel told %+v, %v\nwant %+v", got, ok, w)
				}
			}
			for key := range want {
				if err := tap.Delete(told[key]); err != nil {
					t.Error(err)
				}
				eventually(t, "it is gone", func() bool { _, ok, _ := inTable(key); return !ok })
			}
		})
	}
}

// packetOf sends a packet from c's client.
func packetOf(c *conntable.Connection) error {
	if c.Protocol == kernelsync.ProtoUDP {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(c.Client), net.UDPAddrFromAddrPort(c.Virtual))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		return ignoreUnsent(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(c.Protocol))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := binary.BigEndian.AppendUint16(nil, c.Client.Port())
	p = binary.BigEndian.AppendUint16(p, c.Virtual.Port())
	p = append(p, make([]byte, 8)...)                                          // tag, checksum
	p = append(p, 0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4) // a chunk of data
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrInet4{Addr: c.Client.Addr().As4()}),
		ignoreUnsent(unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: c.Virtual.Addr().As4()})),
	)
	return err
}

// ignoreUnsent is for packets that IPVS saw and could not forward, since there
// is no such real server.
func ignoreUnsent(err error) error {
	for _, e := range []error{unix.EPERM, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EINVAL} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// messages reads what the kernel sends, until its buffers are flushed, and
// checks that it encodes to the same bytes again.
func messages(t *testing.T, tap *Tap) (conns []conntable.Connection) {
	t.Helper()
	tun := tap.tun.Load()
	if err := tun.SetReadDeadline(time.Now().Add(4 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, tunMTU)
	dec := kernelsync.Decoder{SyncID: tap.cfg.CaptureID}
	for {
		n, err := tun.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		msg, ok := payload(buf[:n], tunAddr, netip.AddrPortFrom(syncGroup, tap.cfg.CapturePort))
		if !ok {
			continue
		}
		t.Logf("message %x", msg)
		first := len(conns)
		if err := dec.Decode(msg, func(c *conntable.Connection) {
			d := *c
			d.PEData = slices.Clone(c.PEData)
			if c.Seq != nil {
				seq := *c.Seq
				d.Seq = &seq
			}
			conns = append(conns, d)
		}); err != nil {
			t.Fatal(err)
		}
		if v1 := len(msg) > 5 && msg[5] == 1; v1 {
			again, _, err := kernelsync.AppendMessage(nil, tap.cfg.CaptureID, kernelsync.MaxSize, conns[first:])
			if err != nil || string(again) != string(msg) {
				t.Errorf("encoded again %x (%v)", again, err)
			}
		}
	}
	if c := dec.Counts; c.Protocol+c.State+c.PE+c.UnknownOption+c.Template+c.OnePacket+c.Miscounted != 0 {
		t.Errorf("dropped: %+v", c)
	}
	return conns
}

func kindOf(c *conntable.Connection) string {
	return fmt.Sprintf("%d %v %s", c.Protocol, c.Template, c.PEName)
}

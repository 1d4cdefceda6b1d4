package ipvs

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/syncproto/kernelsync"
)

// TestFirewall: an input chain that lets in nothing but lo does no harm; one
// that drops lo too is named as the reason of a degraded capture.
func TestFirewall(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	nft := func(rules string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("no firewall to test with: nft: %v %s", err, out)
		}
	}
	nft("table inet fw { chain input { type filter hook input priority 0; policy drop; iif lo accept; }; }")
	tap, err := OpenTap(testLog(t), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if ok, why := tap.Healthy(); !ok || tap.LastBeat().IsZero() {
		t.Errorf("behind a firewall that accepts lo: %v, last beat %v", why, tap.LastBeat())
	}
	nft("flush chain inet fw input")
	eventually(t, "degraded", func() bool { ok, _ := tap.Healthy(); return !ok })
	if _, why := tap.Healthy(); !strings.Contains(why, "firewall") {
		t.Errorf("reason %q", why)
	}
	nft("add rule inet fw input accept")
	eventually(t, "healthy again", func() bool { ok, _ := tap.Healthy(); return ok })
}

// sendAs multicasts b to the sync threads' group on dev as another user. It does
// so on a thread of its own, which ends with that user's rights.
func sendAs(uid int, dev string, port uint16, b []byte) error {
	ifi, err := net.InterfaceByName(dev)
	if err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- fmt.Errorf("become user %d: %w", uid, errno)
			return
		}
		done <- multicast(ifi.Index, port, b)
	}()
	return <-done
}

func multicast(ifindex int, port uint16, b []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ifindex)}); err != nil {
		return err
	}
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Port: int(port), Addr: syncGroup.As4()})
}

// TestGuard: another user can neither inject nor feed the capture.
func TestGuard(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	cfg := testConfig(t)
	cfg.OnRecord = rec.record
	tap, err := OpenTap(testLog(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	running(t, tap)
	if !tap.Stats().Guarded {
		t.Skip("nftables cannot guard here")
	}
	c := bulk(1)[0]
	msg, _, err := kernelsync.AppendMessage(nil, tap.cfg.InjectID, 1472, []conntable.Connection{c})
	if err != nil {
		t.Fatal(err)
	}
	spoof := func(port uint16, dev string, uid int) {
		t.Helper()
		if err := sendAs(uid, dev, port, msg); err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	spoof(tap.cfg.InjectPort, "lo", 65534)
	msg[1] = tap.cfg.CaptureID
	spoof(tap.cfg.CapturePort, tap.cfg.Interface, 65534)
	spoof(tap.cfg.CapturePort, tap.cfg.Interface, 0)
	msg[1] = tap.cfg.InjectID
	time.Sleep(time.Second)
	if _, ok, err := inTable(c.Key); ok || err != nil {
		t.Errorf("another user injected (%v)", err)
	}
	if len(rec.got) != 0 {
		t.Errorf("captured what the kernel did not tell: %+v", rec.got)
	}
	spoof(tap.cfg.InjectPort, "lo", 0)
	eventually(t, "root's injection in the table (else this test proves nothing)", func() bool {
		_, ok, err := inTable(c.Key)
		return ok && err == nil
	})
}

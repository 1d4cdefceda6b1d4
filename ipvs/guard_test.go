package ipvs

import (
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

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
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 to send with another user's rights: ", err)
	}
	spoof := func(port uint16, dev string, uid uint32) {
		script := fmt.Sprintf(`import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
i = socket.if_nametoindex(%q)
import struct
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"\0"*4, b"\0"*4, i))
try: s.sendto(bytes.fromhex(%q), ("224.0.0.81", %d))
except PermissionError: pass`, dev, hex.EncodeToString(msg), port)
		cmd := exec.Command("python3", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
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

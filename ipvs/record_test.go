package ipvs

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"testing"
)

const vip6 = "2001:db8::100"

// TestRecord: every message that the kernel sends for plain, persistent,
// marked and SIP connections, IPv4 and IPv6, decodes without a drop and, in
// version 1, encodes to the same bytes again.
// With -v it prints the messages, for kernelsync's testdata.
func TestRecord(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "-6", "addr", "add", vip6+"/128", "dev", "lo", "nodad").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := exec.Command("modprobe", "ip_vs_pe_sip").Run(); err != nil {
		t.Logf("without SIP: %v", err)
	}
	for i, version := range []string{"1", "0"} {
		t.Run("version "+version, func(t *testing.T) { record(t, version, 1000*(i+1)) })
	}
}

// record makes connections to services from port base on, which no other
// recording has: a template that was told of is not soon told of again.
func record(t *testing.T, version string, base int) {
	at := func(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(base+port)) }
	mark := strconv.Itoa(base)
	err := errors.Join(
		service("-t", at(vip, 80)), service("-t", at(vip, 81), "-p", "90"), service("-u", at(vip, 53)),
		service("-t", at(vip6, 80)), service("-t", at(vip6, 81), "-p", "90"),
		ipvsadm("-A", "-f", mark, "-s", "rr", "-p", "90"), ipvsadm("-a", "-f", mark, "-r", vip, "-g"),
		exec.Command("nft", "add table ip record; add chain ip record out { type filter hook output priority mangle; };"+
			" add rule ip record out ip daddr "+vip+" tcp dport "+strconv.Itoa(base+82)+" meta mark set "+mark).Run(),
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := service("-u", at(vip, 60), "-p", "90", "--pe", "sip"); err != nil {
		t.Logf("without SIP: %v", err)
	}
	cfg := testConfig(t)
	cfg.MaxLen = 1472
	cfg.BeatRate = 1 // so that few of the printed records are heartbeats
	tap := speaking(t, cfg, version)
	call := "INVITE sip:a@b SIP/2.0\r\nCall-ID: 123456789012@10.81.0.1\r\n\r\n"
	for _, to := range []struct{ network, addr, say string }{
		{"udp", at(vip, 53), "x"},
		{"udp", at(vip, 60), call},
		{"tcp", at(vip, 80), ""},
		{"tcp", at(vip, 81), ""},
		{"tcp", at(vip, 82), ""},
		{"tcp", at(vip6, 80), ""},
		{"tcp", at(vip6, 81), ""},
	} {
		connect(t, to.network, to.addr, to.say)
	}
	kinds := map[string]int{}
	for _, c := range messages(t, tap) {
		kinds[kindOf(&c)]++
	}
	t.Log(kinds)
	for _, want := range []string{"6 false ", "6 true ", "17 false ", "0 true "} {
		if kinds[want] == 0 {
			t.Errorf("no record of %q", want)
		}
	}
}

// service adds a virtual service on this host with this host as its real server.
func service(kind, addr string, more ...string) error {
	return errors.Join(
		ipvsadm(append([]string{"-A", kind, addr, "-s", "rr"}, more...)...),
		ipvsadm("-a", kind, addr, "-r", addr, "-g"),
	)
}

// connect listens at addr, connects to it, says something, and closes.
func connect(t *testing.T, network, addr, say string) {
	t.Helper()
	var server io.Closer
	var err error
	if network == "tcp" {
		server, err = net.Listen("tcp", addr)
	} else {
		server, err = net.ListenPacket("udp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if say != "" {
		if _, err := io.WriteString(c, say); err != nil {
			t.Fatal(err)
		}
	}
}

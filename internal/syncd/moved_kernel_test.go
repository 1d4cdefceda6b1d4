package syncd

import (
	"net"
	"strings"
	"testing"

	"saru/internal/testnet"
)

// A flow of datagrams whose real server goes gets another one from its
// director, and in the peer's kernel, which counts it there as its own does.
func TestDatagramFlowMovesInTheKernel(t *testing.T) {
	l := newRealLAN(t)
	const service, first, second = testVIP + ":53", "10.97.0.4", "10.97.0.77"
	for i := range 2 {
		l.run(i, "sysctl", "-qw", "net.ipv4.vs.expire_nodest_conn=1")
		l.run(i, "ipvsadm", "-A", "-u", service, "-s", "rr")
		l.run(i, "ipvsadm", "-a", "-u", service, "-r", first, "-g")
		l.start(i)
	}
	for i := range 2 {
		l.synced(i)
	}
	l.via(0)
	var flow net.Conn
	must(t, testnet.Within(l.Nodes[nodeClient], func() (err error) { flow, err = net.Dial("udp4", service); return err }))
	defer flow.Close()
	send := func() { flow.Write([]byte("a datagram")) }
	at := func(i int) string {
		for line := range strings.Lines(l.run(i, "ipvsadm", "-Lnc")) {
			if f := strings.Fields(line); len(f) == 6 && f[0] == "UDP" && f[4] == service {
				return f[5]
			}
		}
		return ""
	}
	defer func() {
		for i := range 2 {
			if t.Failed() {
				t.Logf("d%d: %+v\n%s%s", i+1, l.status(i).Audit, l.run(i, "ipvsadm", "-Lnc"), l.run(i, "ipvsadm", "-Ln"))
			}
		}
	}()
	send()
	testnet.Await(t, "both kernels send it to the first", func() bool { return at(0) == first+":53" && at(1) == first+":53" })

	for i := range 2 {
		l.run(i, "ipvsadm", "-a", "-u", service, "-r", second, "-g")
	}
	l.run(0, "ipvsadm", "-d", "-u", service, "-r", first)
	testnet.Await(t, "its director sends it to the second", func() bool {
		send()
		return at(0) == second+":53"
	})
	testnet.Await(t, "so does the peer's kernel", func() bool { return at(1) == second+":53" })
	testnet.Await(t, "the peer's kernel counts it there, as inactive", func() bool {
		counts := map[string][]string{}
		for line := range strings.Lines(l.run(1, "ipvsadm", "-Ln", "-u", service)) {
			if f := strings.Fields(line); len(f) == 6 && f[0] == "->" {
				counts[f[1]] = f[4:]
			}
		}
		is := func(server, active, inactive string) bool {
			c := counts[server+":53"]
			return len(c) == 2 && c[0] == active && c[1] == inactive
		}
		return is(first, "0", "0") && is(second, "0", "1")
	})
}

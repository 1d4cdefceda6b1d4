package demo

import (
	"fmt"
	"strings"
	"time"
)

// sharedMAC belongs to no interface: all directors receive it.
const sharedMAC = "02:00:5e:00:01:c9"

// A director is what its daemons' configuration needs to know.
type director struct {
	name, addr string
	peers      []string // the other directors' addresses
	vip        string
	keyFile    string

	saruSocket, syncdSocket string
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(q, ", ") + "]"
}

func (d director) saruConf(lease time.Duration, delay time.Duration) string {
	return fmt.Sprintf(`[cluster]
name     = "demo"
node     = %q
bind     = "%s:7946"
join     = %s
key_file = %q

[share]
id        = 1
addresses = [%q]
interface = "eth0"
sense     = "src-port"
method    = "hash"
buckets   = 256
mac       = %q

[timing]
lease = %q
delay = %q

[control]
socket = %q
syncd  = %q
`, d.name, d.addr, quoted(d.peers), d.keyFile, d.vip, sharedMAC, lease, delay, d.saruSocket, d.syncdSocket)
}

func (d director) syncdConf() string {
	return fmt.Sprintf(`[sync]
node      = %q
interface = "eth0"
group     = "239.192.0.81:8849"
key_file  = %q

[control]
socket = %q
saru   = %q
`, d.name, d.keyFile, d.syncdSocket, d.saruSocket)
}

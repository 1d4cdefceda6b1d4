package ipvs

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
	"saru/internal/config"
	"saru/syncproto/kernelsync"
)

// A Config says how a Tap works. The zero value of each field stands for its
// default.
type Config struct {
	// OnRecord takes each captured record, on one goroutine of Run. The
	// Connection and what it points to are valid during the call only.
	OnRecord func(*conntable.Connection)

	// Interface is the TUN interface to make. Default "syncd0".
	Interface string
	// StateFile keeps the kernel's original settings for the case of a
	// crash. One for each network namespace. Default /run/saru/tap.json.
	StateFile string
	// CapturePort and InjectPort are the sync threads' UDP ports; they
	// differ. Defaults 8847 and 8848.
	CapturePort, InjectPort uint16
	// CaptureID and InjectID are the sync threads' IDs, 1 to 255; they
	// differ. Defaults 81 and 82.
	CaptureID, InjectID uint8
	// MaxLen is the size of the master's buffers in bytes, which decides
	// how many records wait for each other. Default: one record. At most
	// 9188, where the kernel's count of records wraps.
	MaxLen uint16
	// RefreshPeriod is how often the kernel tells again of a connection
	// that talks, whole seconds, at most a minute. Default: a third of the
	// smallest timeout in use, 10 s to a minute.
	RefreshPeriod time.Duration
	// BeatRate is heartbeats per second. Default 50.
	BeatRate int
	// Keep makes Close leave the kernel as the Tap set it up, for the next
	// one to take over.
	Keep bool
}

func (c *Config) defaults() {
	set(&c.Interface, "syncd0")
	set(&c.StateFile, "/run/saru/tap.json")
	set(&c.CapturePort, 8847)
	set(&c.InjectPort, 8848)
	set(&c.CaptureID, 81)
	set(&c.InjectID, 82)
	set(&c.MaxLen, kernelsync.HeaderSize+kernelsync.RecordSize4)
	set(&c.BeatRate, 50)
}

func set[T comparable](v *T, def T) {
	if *v == *new(T) {
		*v = def
	}
}

func (c *Config) check() error {
	const maxLen = kernelsync.HeaderSize + kernelsync.MaxRecords*kernelsync.RecordSize4
	switch {
	case len(c.Interface) >= unix.IFNAMSIZ || strings.ContainsAny(c.Interface, "/ \t\n") || c.Interface == "." || c.Interface == "..":
		return config.Bad("tap interface %q: not an interface name; use up to 15 letters and digits", c.Interface)
	case c.CapturePort == c.InjectPort || c.CaptureID == c.InjectID:
		return config.Bad("tap ports %d and %d, sync IDs %d and %d: both pairs must differ", c.CapturePort, c.InjectPort, c.CaptureID, c.InjectID)
	case c.MaxLen > maxLen:
		return config.Bad("tap message size %d: the kernel miscounts records beyond %d bytes", c.MaxLen, maxLen)
	case c.RefreshPeriod < 0 || c.RefreshPeriod > maxRefresh || c.RefreshPeriod%time.Second != 0:
		return config.Bad("refresh period %v: use whole seconds, at most %v", c.RefreshPeriod, maxRefresh)
	case c.BeatRate < 1 || c.BeatRate > 1000:
		return config.Bad("heartbeat rate %d a second: use 1 to 1000", c.BeatRate)
	}
	return nil
}

// sysctlQueue bounds the messages that wait for the master thread. What comes
// beyond it is lost and counted nowhere (net/netfilter/ipvs/ip_vs_sync.c,
// sb_queue_tail). The kernel's own bound is 8,192 for each GiB of memory, made
// for messages of some forty records.
const sysctlQueue = "sync_qlen_max"

// queueRoom is how many messages of one record may wait at least: more than a
// second of 100,000 records. They take no memory before they wait. A message
// then takes 128 bytes (IPv4: struct ip_vs_sync_buff and 44 bytes, each rounded
// up by kmalloc) or 160 (IPv6), 576 with persistence data; all of them 16 MiB,
// 20 MiB, or 72 MiB.
const queueRoom = 1 << 17

// sysctls returns what IPVS must be set to, in this order.
func (c *Config) sysctls() []setting {
	return []setting{
		{"sync_version", "1"},
		{"sync_ports", "1"}, // each thread would have its own buffer to wait in
		{"sync_sock_size", strconv.Itoa(8 << 20)},
		{sysctlQueue, strconv.Itoa(queueRoom)}, // or more
		{"sync_retries", "1"},                  // else timeouts below the refresh period are never told
		{sysctlRefresh, seconds(max(c.RefreshPeriod, minRefresh))},
		{"sync_threshold", "0 0"}, // from the first established packet on
		{"sync_persist_mode", "0"},
		{"backup_only", "0"}, // else a director with a backup thread serves nobody
	}
}

func (c *Config) daemons() [2]Daemon {
	return [2]Daemon{
		{Role: Backup, Interface: "lo", SyncID: c.InjectID, Group: syncGroup, Port: c.InjectPort, TTL: 1},
		{Role: Master, Interface: c.Interface, SyncID: c.CaptureID, MaxLen: c.MaxLen, Group: syncGroup, Port: c.CapturePort, TTL: 1},
	}
}

// ours says whether d is what a Tap with this Config starts.
func (c *Config) ours(d Daemon) bool {
	for _, own := range c.daemons() {
		if d.Role == own.Role && d.Interface == own.Interface && d.SyncID == own.SyncID && d.Port == own.Port {
			return true
		}
	}
	return false
}

// foreign says that d is in the way, and how to remove it.
func (c *Config) foreign(d Daemon) string {
	return fmt.Sprintf("the kernel's %s sync thread runs on interface %q with sync ID %d and is not ours; "+
		"stop it with \"ipvsadm --stop-daemon %s\", or remove lvs_sync_daemon from keepalived.conf; [legacy] speaks with directors that keep theirs", d.Role, d.Interface, d.SyncID, d.Role)
}

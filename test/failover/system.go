package failover

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"saru/internal/director"
	"saru/internal/seal"
	"saru/test/lab"
)

const vip = "10.9.0.100"

// A System is something that moves a virtual address between two directors.
type System struct {
	Name  string
	start func(ctx context.Context, p *pair, d *lab.Director) error
	// both says that both directors serve at a time.
	both bool
	// settle is how long a director that returned needs to be fit for the
	// next failover.
	settle time.Duration
}

// Keepalived is VRRP with the given seconds between two advertisements.
func Keepalived(advert string, settle time.Duration) System {
	start := func(ctx context.Context, _ *pair, d *lab.Director) error {
		conf := filepath.Join(d.Dir, "keepalived.conf")
		text := fmt.Sprintf(`vrrp_instance vip {
    state BACKUP
    version 3
    nopreempt
    interface eth0
    virtual_router_id 51
    priority 150
    advert_int %s
    virtual_ipaddress {
        %s/24
    }
}
`, advert, vip)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return err
		}
		_, err := d.Start(ctx, "keepalived", []string{"keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", conf}, lab.Options{})
		return err
	}
	return System{Name: "keepalived, advert_int " + advert, start: start, settle: settle}
}

// Saru is the saru binary with a timing profile.
func Saru(binary, profile string) System {
	start := func(ctx context.Context, p *pair, d *lab.Director) error {
		key := filepath.Join(p.dir, "key")
		if _, err := os.Stat(key); err != nil {
			if err := os.WriteFile(key, []byte(seal.NewKey()+"\n"), 0o600); err != nil {
				return err
			}
		}
		conf := saruConf(d)
		text := fmt.Sprintf(`[cluster]
name = "bench"
node = %q
bind = %q
join = ["10.9.0.2", "10.9.0.3"]
key_file = %q
[share]
addresses = [%q]
interface = "eth0"
target = "local"
[timing]
profile = %q
delay = "0s"
[control]
metrics = ""
`, d.Name, d.Addr, key, vip, profile)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return err
		}
		_, err := d.Start(ctx, "saru", []string{binary, "--config", conf, "--log_facility", "-"}, lab.Options{})
		return err
	}
	return System{Name: "saru, profile " + profile, start: start, both: true}
}

func saruConf(d *lab.Director) string { return filepath.Join(d.Dir, "saru.toml") }

// saruStatus asks the saru of d.
func saruStatus(ctx context.Context, binary string, d *lab.Director) (*director.Status, error) {
	out, err := d.Run(ctx, binary, "status", "--json", "--config", saruConf(d))
	if err != nil {
		return nil, err
	}
	var st director.Status
	return &st, json.Unmarshal([]byte(out), &st)
}

package syncd

import (
	"fmt"
	"io"

	"saru/internal/config"
	"saru/ipvs"
	"saru/ipvs/usersync"
)

// smallTable is the kernel's default, 12 bits: long chains for any real load.
const smallTable = 1 << 12

// Check prints what s asks for and what the kernel can do. Its error says what
// keeps syncd from mirroring. It changes nothing, but the kernel loads its module
// when it is asked for it.
func Check(w io.Writer, s *Settings) error {
	fmt.Fprintf(w, "configuration  good: node %s, source %s, at most %d connections\n", s.Node, s.Source, s.Limit)
	module := checkModule()
	fmt.Fprintf(w, "module         %s\n", orYes(module))
	c, err := ipvs.Dial()
	if err != nil {
		fmt.Fprintf(w, "IPVS           no: %v\n", err)
		return config.Bad("this kernel has no IPVS to mirror: %v; load the module ip_vs", err)
	}
	defer c.Close()
	info, err := c.Info()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "IPVS           yes, version %d.%d.%d\n", info.Major, info.Minor, info.Patch)
	fmt.Fprintf(w, "table          %s\n", tableVerdict(info.TableSize))
	daemons, err := c.Daemons()
	if err != nil {
		return err
	}
	if len(daemons) == 0 {
		fmt.Fprintln(w, "sync threads   none run, so syncd can have them")
	}
	for _, d := range daemons {
		fmt.Fprintf(w, "sync threads   %v on %s, sync ID %d: syncd's own if it runs, else in its way\n", d.Role, d.Interface, d.SyncID)
	}
	if s.Source == SourceModule && module != nil {
		return config.Bad("kernel.source = %q: %v; load ip_vs_user_sync, or use %q", s.Source, module, SourceAuto)
	}
	return nil
}

func orYes(err error) string {
	if err != nil {
		return "no: " + err.Error()
	}
	return "yes"
}

func checkModule() error {
	c, err := usersync.Dial()
	if err != nil {
		return err
	}
	return c.Close()
}

// tableVerdict says whether the kernel's table is large enough to be of use.
func tableVerdict(buckets uint32) string {
	if buckets > smallTable {
		return fmt.Sprintf("%d buckets", buckets)
	}
	return fmt.Sprintf("only %d buckets, and each packet walks one: set 'options ip_vs conn_tab_bits=20' in /etc/modprobe.d/ip_vs.conf, drain, and load the module anew", buckets)
}

package director

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"saru/internal/config"
	"saru/internal/seal"
	"saru/membership"
	"saru/partition"
	"saru/partition/nft"
)

const (
	// DefaultConfigPath is where the configuration is, unless --config says
	// otherwise.
	DefaultConfigPath = "/etc/saru/saru.toml"

	// DefaultPort is the gossip's port, TCP and UDP; heartbeats take the next.
	DefaultPort = 7946

	// maxFragments is more than a link of 100 Gbit/s brings.
	maxFragments = 100_000_000
)

// A File is the configuration file.
type File struct {
	Cluster ClusterSection `toml:"cluster"`
	Share   ShareSection   `toml:"share"`
	Timing  TimingSection  `toml:"timing"`
	Control ControlSection `toml:"control"`

	more []ShareSection // the other shares, by id; Share has the lowest
}

// A ClusterSection is [cluster].
type ClusterSection struct {
	Name    string   `toml:"name"`
	Node    string   `toml:"node"`
	Bind    string   `toml:"bind"`
	Join    []string `toml:"join"`
	KeyFile string   `toml:"key_file"`
	Role    string   `toml:"role"`
	Quorum  string   `toml:"quorum"`
	Voters  []string `toml:"voters"`
	Weight  int      `toml:"weight"`
	Ping    []string `toml:"ping"`
}

// A ShareSection is [share], or one of several [[share]].
type ShareSection struct {
	ID        int      `toml:"id"`
	Addresses []string `toml:"addresses"`
	Interface string   `toml:"interface"`
	Sense     string   `toml:"sense"`
	Method    string   `toml:"method"`
	Buckets   int      `toml:"buckets"`
	MAC       string   `toml:"mac"`
	Mode      string   `toml:"mode"`
	Backend   string   `toml:"backend"`
	Target    string   `toml:"target"`
	Fragments int      `toml:"fragments"`
	Inside    *struct {
		Interface string   `toml:"interface"`
		Address   string   `toml:"address"`
		MAC       string   `toml:"mac"`
		Networks  []string `toml:"networks"`
	} `toml:"inside"`
}

// A TimingSection is [timing].
type TimingSection struct {
	Profile string          `toml:"profile"`
	Lease   config.Duration `toml:"lease"`
	Delay   config.Duration `toml:"delay"`
}

// A ControlSection is [control].
type ControlSection struct {
	Socket  string `toml:"socket"`
	Metrics string `toml:"metrics"`
	Syncd   string `toml:"syncd"`
	Debug   bool   `toml:"debug"`
}

// DefaultFile returns a configuration of defaults: a cluster of one.
func DefaultFile() File {
	var f File
	f.Cluster.Name, f.Cluster.Role, f.Cluster.Quorum, f.Cluster.Weight = "saru", "director", "lan", 100
	f.Share = ShareSection{
		ID: 1, Sense: "src-port", Method: "hash", Buckets: 256, Mode: modeFlood, Backend: backendRules, Target: "ipvs",
		Fragments: nft.DefaultFragments,
	}
	f.Timing.Profile, f.Timing.Lease, f.Timing.Delay = "default", config.Duration(defaultLease), config.Duration(30*time.Second)
	f.Control.Socket, f.Control.Metrics, f.Control.Syncd = "/run/saru/saru.sock", "127.0.0.1:9646", "/run/saru/syncd.sock"
	return f
}

// Settings is a configuration that was found good.
type Settings struct {
	file    File // as it was read
	Cluster string
	Node    string
	Bind    netip.AddrPort
	Join    []netip.AddrPort
	Keys    *seal.Keyring
	Weight  int
	Ping    []netip.Addr
	Witness bool                // votes, has no share
	Voters  []membership.NodeID // none: quorum lan

	ID        int
	VIPs      []netip.Prefix // none: no share, membership only
	Interface string
	Sense     partition.Sense
	Method    partition.Method
	Buckets   int
	MAC       net.HardwareAddr
	IPVS      bool // the target is IPVS, else local sockets
	Backend   string
	Forward   bool                // mode forward: the MAC is the interface's own
	Fragments int                 // let in at most, a second
	Services  []partition.Service // divided in a way of their own, as IPVS asks
	Inside    *Inside             // LVS-NAT only
	Replies   []partition.Reply   // and what it answers from, as IPVS says
	Seed      uint32

	Lease   time.Duration
	Delay   time.Duration
	Socket  string
	Metrics string
	Syncd   string
	Debug   bool // log more

	Others []*Settings // of the other shares
	ids    []int       // of all shares, this one too
	rank   int         // of the share among all, by id
}

// Load reads and validates the configuration at path. Without a file at the
// default place it returns a cluster of one.
func Load(path string) (*Settings, error) {
	f, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return f.Settings()
}

// Settings validates f. It looks at the machine's interfaces and reads the key
// file, and touches nothing.
func (f *File) Settings() (*Settings, error) {
	s, err := f.first()
	if err == nil && len(f.more) > 0 {
		s.Others, err = f.others(s)
	}
	return s, err
}

// first validates f without its other shares.
func (f *File) first() (*Settings, error) {
	s := &Settings{
		file:    *f,
		Debug:   f.Control.Debug,
		Cluster: f.Cluster.Name, Weight: f.Cluster.Weight, ID: f.Share.ID, Buckets: f.Share.Buckets,
		Lease: f.Timing.Lease.Std(), Delay: f.Timing.Delay.Std(),
		Socket: f.Control.Socket, Metrics: f.Control.Metrics, Syncd: f.Control.Syncd,
	}
	for _, check := range []func(*Settings) error{f.means, f.cluster, f.quorum, f.share, f.inside, f.timing, f.control, f.keys} {
		if err := check(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (f *File) cluster(s *Settings) (err error) {
	if err = config.Name("cluster.name", s.Cluster, membership.MaxName); err != nil {
		return err
	}
	if s.Node = f.Cluster.Node; s.Node == "" {
		if s.Node, err = os.Hostname(); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
	}
	if err = config.Name("cluster.node", s.Node, membership.MaxName); err != nil {
		return err
	}
	if s.Weight < 1 || s.Weight > partition.MaxWeight {
		return config.Bad("cluster.weight = %d: use 1 to %d", s.Weight, partition.MaxWeight)
	}
	bind := f.Cluster.Bind
	if bind == "" {
		if len(f.Cluster.Join) > 0 {
			return config.Bad("cluster.bind is not set: give the address that the others reach this node at, as in \"10.9.0.2:%d\"", DefaultPort)
		}
		bind = "127.0.0.1"
	}
	if s.Bind, err = endpoint("cluster.bind", bind); err != nil {
		return err
	}
	if s.Bind.Addr().IsUnspecified() {
		return config.Bad("cluster.bind = %q: give the one address that the others reach this node at", bind)
	}
	if err := localAddress("cluster.bind", s.Bind.Addr()); err != nil {
		return err
	}
	for _, j := range f.Cluster.Join {
		at, err := endpoint("cluster.join", j)
		if err != nil {
			return err
		}
		s.Join = append(s.Join, at)
	}
	if len(s.Join) > membership.MaxNodes {
		return config.Bad("cluster.join names %d nodes; a cluster has at most %d", len(s.Join), membership.MaxNodes)
	}
	for _, p := range f.Cluster.Ping {
		a, err := netip.ParseAddr(p)
		if err != nil || !a.Is4() {
			return config.Bad("cluster.ping = %q: not an IPv4 address such as \"10.9.0.254\"", p)
		}
		s.Ping = append(s.Ping, a)
	}
	return nil
}

// quorum reads the policy, who votes, and this node's own role.
func (f *File) quorum(s *Settings) error {
	switch f.Cluster.Role {
	case "director":
	case "witness":
		s.Witness = true
	default:
		return config.Bad("cluster.role = %q: no such value; use \"director\" or \"witness\"", f.Cluster.Role)
	}
	switch f.Cluster.Quorum {
	case "lan":
		switch {
		case len(f.Cluster.Voters) > 0:
			return config.Bad("cluster.voters = %q: quorum \"lan\" has no voters; use \"majority\" or remove the key", f.Cluster.Voters)
		case s.Witness:
			return config.Bad("cluster.role = \"witness\": quorum \"lan\" has no voters, so a witness changes nothing; use \"majority\" on all nodes")
		}
		return nil
	case "majority":
	default:
		return config.Bad("cluster.quorum = %q: no such value; use \"lan\" or \"majority\"", f.Cluster.Quorum)
	}
	switch n := len(f.Cluster.Voters); {
	case n == 0:
		return config.Bad("cluster.voters is not set: with quorum \"majority\" name all directors and witnesses that vote, on every node the same, best an odd number")
	case n > membership.MaxNodes:
		return config.Bad("cluster.voters names %d nodes; at most %d vote", n, membership.MaxNodes)
	}
	for i, v := range f.Cluster.Voters {
		if err := config.Name("cluster.voters", v, membership.MaxName); err != nil {
			return err
		}
		if slices.Contains(f.Cluster.Voters[:i], v) {
			return config.Bad("cluster.voters names %q twice; remove one", v)
		}
		s.Voters = append(s.Voters, membership.ID(v))
	}
	if s.Witness && !slices.Contains(f.Cluster.Voters, s.Node) {
		return config.Bad("cluster.voters = %q: this witness, %q, is not among them; a witness that does not vote is of no use", f.Cluster.Voters, s.Node)
	}
	return nil
}

// endpoint parses an IPv4 address with or without a port.
func endpoint(key, text string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		a, aerr := netip.ParseAddr(text)
		if aerr != nil {
			return at, config.Bad("%s = %q: not an address such as \"10.9.0.2\" or \"10.9.0.2:%d\"", key, text, DefaultPort)
		}
		at = netip.AddrPortFrom(a, DefaultPort)
	}
	if !at.Addr().Is4() || at.Port() == 0 || at.Port() == 65535 {
		return at, config.Bad("%s = %q: use an IPv4 address and a port from 1 to 65534", key, text)
	}
	return at, nil
}

func localAddress(key string, a netip.Addr) error {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var have []string
	for _, ia := range all {
		n, ok := ia.(*net.IPNet)
		if !ok {
			continue
		}
		if b, ok := netip.AddrFromSlice(n.IP); ok && b.Unmap() == a {
			return nil
		}
		if n.IP.To4() != nil {
			have = append(have, n.IP.String())
		}
	}
	if a.IsLoopback() {
		return nil // all of 127.0.0.0/8 is local
	}
	return config.Bad("%s = %q: no interface of this machine has this address; it has %s", key, a, strings.Join(have, ", "))
}

func (f *File) share(s *Settings) (err error) {
	if s.ID < 1 || s.ID > 255 {
		return config.Bad("share.id = %d: use 1 to 255", s.ID)
	}
	if s.Sense, err = partition.ParseSense(f.Share.Sense); err != nil {
		return config.Bad("share.sense = %q: %v", f.Share.Sense, err)
	}
	if s.Method, err = partition.ParseMethod(f.Share.Method); err != nil {
		return config.Bad("share.method = %q: %v", f.Share.Method, err)
	}
	if !partition.ValidBuckets(s.Buckets) || s.Buckets < 2 || s.Buckets > membership.MaxBuckets {
		return config.Bad("share.buckets = %d: use a power of two from 2 to %d", s.Buckets, membership.MaxBuckets)
	}
	if s.Witness {
		if len(f.Share.Addresses) > 0 {
			return config.Bad("share.addresses = %q: a witness has no share; remove the key", f.Share.Addresses)
		}
		return nil
	}
	switch f.Share.Target {
	case "ipvs", "local":
		s.IPVS = f.Share.Target == "ipvs"
	default:
		return config.Bad("share.target = %q: no such value; use \"ipvs\" or \"local\"", f.Share.Target)
	}
	if s.Fragments = f.Share.Fragments; s.Fragments < 1 || s.Fragments > maxFragments {
		return config.Bad("share.fragments = %d: use 1 to %d a second", s.Fragments, maxFragments)
	}
	if s.VIPs, err = virtual("share.addresses", f.Share.Addresses); err != nil {
		return err
	}
	if len(s.VIPs) == 0 {
		return nil
	}
	s.Interface = f.Share.Interface
	if s.Interface == "" {
		return config.Bad("share.interface is not set: name the interface of the clients' LAN, such as \"eth0\"")
	}
	ifi, err := config.Interface("share.interface", s.Interface)
	if err != nil {
		return err
	}
	if len(ifi.HardwareAddr) != 6 {
		return config.Bad("share.interface = %q: not an Ethernet interface; name the one of the clients' LAN", s.Interface)
	}
	if s.Forward {
		s.MAC = ifi.HardwareAddr
	} else if s.MAC, err = f.sharedMAC(s, ifi); err != nil {
		return err
	}
	_, err = partition.NewDivider(s.Plan())
	if err != nil {
		return config.Bad("share: %v", err)
	}
	return nil
}

// Plan is how the share is divided.
func (s *Settings) Plan() partition.Plan {
	p := partition.Plan{
		VIPs: s.VIPs, Buckets: s.Buckets, Seed: s.Seed,
		Default: partition.Division{Sense: s.Sense, Method: s.Method}, Services: s.Services,
	}
	s.planInside(&p)
	return p
}

func (f *File) control(s *Settings) error {
	for _, at := range []struct{ key, path string }{{"control.socket", s.Socket}, {"control.syncd", s.Syncd}} {
		if err := config.SocketPath(at.key, at.path); err != nil {
			return err
		}
	}
	if s.Metrics == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(s.Metrics)
	if err != nil || !at.Addr().IsLoopback() {
		return config.Bad("control.metrics = %q: use a loopback address and port such as \"127.0.0.1:9646\", or \"\" for none", s.Metrics)
	}
	return nil
}

func (f *File) keys(s *Settings) (err error) {
	if f.Cluster.KeyFile != "" {
		s.Keys, err = seal.LoadKeyring(f.Cluster.KeyFile)
	} else if len(s.Join) > 0 || len(s.VIPs) > 0 {
		return config.Bad("cluster.key_file is not set: make one with 'saru keygen' and name it here, on every node the same")
	} else {
		s.Keys, err = seal.ParseKeyring([]byte(seal.NewKey()))
	}
	if err != nil {
		return err
	}
	// Secret, so that clients cannot pick their director. It changes with the
	// sealing key, so a rotation that moves keys needs all directors restarted.
	s.Seed = binary.BigEndian.Uint32(s.Keys.DeriveSeed("hash seed", 4))
	return nil
}

// Shape is the hash of all that decides a packet: directors that differ in it
// must not divide a share between them.
func (s *Settings) Shape() uint64 {
	quorum := "lan"
	if len(s.Voters) > 0 {
		quorum = "majority" // of whom is agreed on apart, so that one voter at a time can change
	}
	plan := ""
	if d, err := partition.NewDivider(s.Plan()); err == nil { // else there is no share, or it was refused
		plan = d.Shape()
	}
	h := sha256.New()
	mac := s.MAC.String()
	if s.Forward {
		mac = "forward" // each has its own
	}
	fmt.Fprintf(h, "saru shape 2 %d %s %s; %s", s.ID, mac, quorum, plan)
	if s.Inside != nil {
		fmt.Fprintf(h, "; %v %v", s.Inside.Address, s.Inside.MAC)
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

func (s *Settings) role() string {
	if s.Witness {
		return "witness"
	}
	return "director"
}

package conntable

import (
	"net/netip"
	"time"
)

// Flags of a connection, as the kernel's sync protocol carries them
// (include/uapi/linux/ip_vs.h, IP_VS_CONN_F_*).
const (
	FlagFwdMask    uint32 = 0x0007 // the forwarding method
	FlagFwdMasq    uint32 = 0
	FlagFwdLocal   uint32 = 1
	FlagFwdTunnel  uint32 = 2
	FlagFwdGate    uint32 = 3
	FlagFwdBypass  uint32 = 4
	FlagSync       uint32 = 0x0020 // made by a sync message
	FlagNoOutput   uint32 = 0x0080
	FlagInactive   uint32 = 0x0100 // counts as inactive at its real server
	FlagOutSeq     uint32 = 0x0200
	FlagInSeq      uint32 = 0x0400
	FlagSeqMask    uint32 = 0x0600
	FlagNoCPort    uint32 = 0x0800 // the client's port is not known yet
	FlagTemplate   uint32 = 0x1000 // a persistence template
	FlagOnePacket  uint32 = 0x2000
	FlagBackupMask        = FlagFwdMask | FlagNoOutput | FlagInactive | FlagSeqMask | FlagNoCPort | FlagTemplate
)

// A Key is what makes a connection one connection: the kernel looks entries
// up by it (net/netfilter/ipvs/ip_vs_conn.c, __ip_vs_conn_in_get and
// ip_vs_ct_in_get).
type Key struct {
	Client   netip.AddrPort // port 0 for a template
	Virtual  netip.AddrPort // for a fwmark template the address is the mark
	Protocol uint8          // IANA protocol number; 0 for a fwmark template
	Template bool
}

// A Connection is one IPVS connection entry as the kernel's sync protocol
// tells it (net/netfilter/ipvs/ip_vs_sync.c, struct ip_vs_sync_v4).
type Connection struct {
	Key
	Dest    netip.AddrPort // the real server
	State   uint16         // index into the protocol's table of states (include/net/ip_vs.h, IP_VS_TCP_S_*)
	Flags   uint32         // Flag...
	FWMark  uint32         // mark of the packet that made the entry
	Timeout time.Duration  // the state's full timeout, whole seconds
	Seq     *SeqPair       // for applications that change sizes (FTP), else nil
	PEName  string         // persistence engine, at most 16 bytes
	PEData  []byte         // its data (a SIP call id), at most 255 bytes
}

// Seq is how one direction's TCP sequence numbers are moved
// (include/net/ip_vs.h, struct ip_vs_seq).
type Seq struct {
	Init, Delta, Prev uint32
}

// A SeqPair is both directions' Seq.
type SeqPair struct {
	In, Out Seq
}

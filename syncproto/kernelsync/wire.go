package kernelsync

import "math"

// Sizes in bytes (ip_vs_sync.c: struct ip_vs_sync_mesg, ip_vs_sync_v4,
// ip_vs_sync_v6, ip_vs_sync_mesg_v0, ip_vs_sync_conn_v0).
const (
	HeaderSize   = 8
	RecordSize4  = 36
	RecordSize6  = 72
	MaxRecords   = math.MaxUint8  // per message: the header counts in a byte
	MaxSize      = math.MaxUint16 // of a message: the header's size field
	seqDataSize  = 24
	headerSizeV0 = 4
	recordSizeV0 = 24
)

// Offsets within a record; the client, virtual and real addresses follow.
const (
	offType    = 0
	offProto   = 1
	offVerLen  = 2
	offFlags   = 4
	offState   = 8
	offCPort   = 10
	offVPort   = 12
	offDPort   = 14
	offFWMark  = 16
	offTimeout = 20
	offAddrs   = 24

	typeIPv6 = 1 << 0
	lenMask  = 1<<12 - 1
	verShift = 12
	version1 = 1
)

// Option types (ip_vs_sync.c, IPVS_OPT_*).
const (
	optSeqData  = 1
	optPEData   = 2
	optPEName   = 3
	optOptional = 0x40 // receivers that do not know the type skip the option

	maxPEData = 255 // IP_VS_PEDATA_MAXLEN
	maxPEName = 16  // IP_VS_PENAME_MAXLEN
)

// IANA protocol numbers that IPVS balances.
const (
	ProtoTCP  = 6
	ProtoUDP  = 17
	ProtoESP  = 50
	ProtoAH   = 51
	ProtoSCTP = 132
)

// states returns how many states proto has (include/net/ip_vs.h,
// IP_VS_TCP_S_LAST and its like), or 0 for a protocol that IPVS does not
// balance.
func states(proto uint8) uint16 {
	switch proto {
	case ProtoTCP:
		return 11
	case ProtoUDP, ProtoESP, ProtoAH:
		return 1
	case ProtoSCTP:
		return 14
	}
	return 0
}

// templateStates is how many states a persistence template has
// (IP_VS_CTPL_S_LAST: NONE, ASSURED).
const templateStates = 2

// round4 rounds up to where the next record starts.
func round4(n int) int { return (n + 3) &^ 3 }

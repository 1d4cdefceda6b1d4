package usersync

// Numbers of the generic netlink family (kmod/ip_vs_user_sync.h).
const (
	Family      = "IPVS_SYNC"
	Version     = 1
	groupEvents = "events"

	// MaxConns is the number of connections in one request at most.
	MaxConns = 256

	cmdGet    = 1
	cmdCreate = 2
	cmdDelete = 3
	cmdStats  = 4
	cmdEvents = 5

	attrConn    = 2
	attrResults = 3
	attrCPU     = 4
	attrSeq     = 5
	attrDropped = 6
	attrStats   = 7

	connProtocol   = 2
	connCAddr      = 3
	connCPort      = 4
	connVAddr      = 5
	connVPort      = 6
	connFlags      = 7
	connDAddr      = 8
	connDPort      = 9
	connState      = 10
	connFWMark     = 11
	connTimeout    = 12
	connRemaining  = 13
	connPkts       = 14
	connSeq        = 15
	connPEName     = 16
	connPEData     = 17
	connBound      = 18
	connKind       = 19
	connStamp      = 20
	connCookie     = 21
	connCommanded  = 22
	connExpectPkts = 23

	seqSize   = 24
	maxPEName = 16
	maxPEData = 255

	resultCreated = 1
	resultBound   = 2
)

// Numbers of generic netlink's controller (include/uapi/linux/genetlink.h).
const (
	ctrlID             = 0x10
	ctrlNewFamily      = 1
	ctrlDelFamily      = 2
	ctrlAttrFamilyID   = 1
	ctrlAttrFamilyName = 2
)

package ipvs

// Numbers of the generic netlink family "IPVS" (include/uapi/linux/ip_vs.h).
const (
	familyName    = "IPVS"
	familyVersion = 1

	cmdGetService = 4
	cmdGetDest    = 8
	cmdNewDaemon  = 9
	cmdDelDaemon  = 10
	cmdGetDaemon  = 11
	cmdGetConfig  = 13
	cmdGetInfo    = 15

	attrService = 1
	attrDest    = 2
	attrDaemon  = 3
	attrTCP     = 4
	attrTCPFin  = 5
	attrUDP     = 6

	svcAF        = 1
	svcProtocol  = 2
	svcAddr      = 3
	svcPort      = 4 // big-endian
	svcFWMark    = 5
	svcScheduler = 6
	svcFlags     = 7 // struct ip_vs_flags: flags, mask
	svcTimeout   = 8
	svcNetmask   = 9
	svcPEName    = 11

	destAddr      = 1
	destPort      = 2 // big-endian
	destFwd       = 3
	destWeight    = 4
	destUThresh   = 5
	destLThresh   = 6
	destActive    = 7
	destInactive  = 8
	destPersist   = 9
	destAF        = 11
	daemonState   = 1
	daemonIface   = 2
	daemonSyncID  = 3
	daemonMaxLen  = 4 // host byte order
	daemonGroup   = 5
	daemonGroup6  = 6
	daemonPort    = 7 // host byte order
	daemonTTL     = 8
	infoVersion   = 1
	infoTableSize = 2
)

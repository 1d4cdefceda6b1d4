package director

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// raisePriority locks the process's memory and puts the calling thread into
// SCHED_RR, so that load does not look like death (sched(7), mlockall(2)). It
// returns what was refused, or "".
func raisePriority() string {
	var refused string
	// On fault: Go reserves far more address space than it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		refused = fmt.Sprintf("mlockall: %v", err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		refused = fmt.Sprintf("SCHED_RR: %v; give the service CAP_SYS_NICE and a real-time budget", err)
	}
	return refused
}

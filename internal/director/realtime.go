package director

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// realtimePriority is the lowest: whatever else is of that class goes first.
const realtimePriority = 1

// raisePriority locks the process's memory and puts all its threads into
// SCHED_RR, so that load does not look like death (sched(7), mlockall(2)): a
// heartbeat may be sent from any of them. Threads made later inherit the class.
// It returns what was refused, or "".
func raisePriority() string {
	var refused string
	// On fault: Go reserves far more address space than it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		refused = fmt.Sprintf("mlockall: %v", err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: realtimePriority}
	raised := map[string]bool{}
	for again := true; again; { // until a pass finds no thread made meanwhile
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Sprintf("SCHED_RR: %v", err)
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || raised[t.Name()] {
				continue
			}
			if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && err != unix.ESRCH {
				return fmt.Sprintf("SCHED_RR: %v; give the service CAP_SYS_NICE and a real-time budget", err)
			}
			raised[t.Name()], again = true, true
		}
	}
	return refused
}

package guest

import (
	"fmt"
	"os"
	"path/filepath"
)

// oneProcessor lets the kernel start with the first processor alone and never
// doubt its clock. It rewrites its own code while it starts, and again when it
// finds that the clock is not to be trusted, which on a busy machine it does
// not seem to be; an emulated processor that runs through that code just then
// may meet the breakpoint of the rewriting when it is over (see pinHooks; seen
// with 6.12: "Oops: int3" in sched_clock_cpu). QEMU's processors have one
// clock.
const oneProcessor = " maxcpus=1 noreplace-smp tsc=reliable"

// startProcessors brings up all but the first.
func startProcessors() error {
	files, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			return fmt.Errorf("start a processor: %w", err)
		}
	}
	return nil
}

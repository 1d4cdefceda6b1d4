package lab

import (
	"fmt"
	"time"
)

// patience bounds every wait for the kernel. It is long because an emulated
// machine may be slow; nothing waits that long when all is well.
const patience = time.Minute

// eventually asks check again and again until it returns nil. The error says
// what was waited for and the last answer.
func eventually(what string, check func() error) error {
	deadline := time.Now().Add(patience)
	pause := time.Millisecond
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s: %w", patience, what, err)
		}
		time.Sleep(pause)
		pause = min(2*pause, 100*time.Millisecond)
	}
}

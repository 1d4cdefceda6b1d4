package cli

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
)

// A daemon goes on when who reads its log goes away.
func TestReaderOfTheLogGoesAway(t *testing.T) {
	const child = "SARU_TEST_LOG_READER"
	if os.Getenv(child) != "" {
		var f Flags
		p := &Program{Name: "daemon", Run: func(_ context.Context, log *slog.Logger, _ *Flags, ready func()) error {
			ready()
			log.Info("nobody reads this")
			return nil
		}}
		root := p.Command(&f)
		root.SetArgs([]string{"--log_facility", "-"})
		fmt.Println("ended with", Main(root))
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestReaderOfTheLogGoesAway$", "-test.count=1")
	cmd.Env = append(os.Environ(), child+"=1", "NOTIFY_SOCKET=")
	cmd.Stderr = w
	out, err := cmd.Output()
	if err != nil || !bytes.Contains(out, []byte("ended with 0")) {
		t.Errorf("%v: %s", err, out)
	}
}

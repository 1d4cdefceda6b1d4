package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"saru/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, path string) (stop func() error) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { JSON(w, map[string]int{"epoch": 7}) })
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the last director cannot drain", http.StatusConflict)
	})
	s, err := Listen("saru", path, mux)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	return func() error { cancel(); return <-done }
}

func TestAskAndTell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "saru.sock")
	stop := start(t, path)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v; want 0600", st.Mode(), err)
	}
	c := NewClient(path)
	var v struct{ Epoch int }
	if err := c.Get(t.Context(), "/status", &v); err != nil || v.Epoch != 7 {
		t.Errorf("Get = %+v, %v", v, err)
	}
	if err := c.Post(t.Context(), "/drain", nil, nil); err == nil || err.Error() != "the last director cannot drain" {
		t.Errorf("Post: %v, want the daemon's own words", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after a clean stop: %v", err)
	}
	if err := c.Get(t.Context(), "/status", &v); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Get without a daemon: %v, want ErrNotRunning", err)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saru.sock")
	stop := start(t, path)
	_, err := Listen("saru", path, nil)
	if config.ExitStatus(err) != 2 || !strings.Contains(err.Error(), "another saru") {
		t.Errorf("second Listen: %v", err)
	}
	if err := NewClient(path).Get(t.Context(), "/status", &struct{}{}); err != nil {
		t.Errorf("the first daemon no longer answers: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A path that is somebody's file, by a slip in the configuration, is refused.
func TestAnotherFileStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saru.toml")
	if err := os.WriteFile(path, []byte("[cluster]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Listen("saru", path, nil)
	if config.ExitStatus(err) != config.BadInputStatus || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("Listen: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "[cluster]\n" {
		t.Errorf("the file is %q now, %v", b, err)
	}
}

// Whatever the umask, the socket is root's from the moment that it is there.
func TestSocketIsPrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(t.TempDir(), "saru.sock")
	ln, err := listenPrivate(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want 0600", st.Mode(), err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saru.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close() // as a SIGKILL leaves it
	if err := start(t, path)(); err != nil {
		t.Error(err)
	}
}

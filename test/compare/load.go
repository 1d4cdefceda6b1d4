package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"saru/conntable"
)

// A connection is one of the client's.
type connection struct {
	key  conntable.Key
	at   time.Time // of its SYN
	sock *os.File
}

// open sends a SYN. The caller is on a thread of the client's. A connection to
// the open port says something as soon as it can.
func open(k conntable.Key) (*connection, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &connection{key: k, sock: os.NewFile(uintptr(fd), "connection")}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		// A reset at the end: neither side remembers it then.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: k.Client.Addr().As4(), Port: int(k.Client.Port())}),
	)
	if err != nil {
		return nil, errors.Join(err, c.sock.Close())
	}
	c.at = time.Now()
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: k.Virtual.Addr().As4(), Port: int(k.Virtual.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(fmt.Errorf("connect %v to %v: %w", k.Client, k.Virtual, err), c.sock.Close())
	}
	if k.Virtual.Port() == openPort {
		go c.talk()
	}
	return c, nil
}

// talk says a byte when the handshake is over, and hears one.
func (c *connection) talk() {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Write(func(fd uintptr) bool {
		_, err := unix.Getpeername(int(fd))
		return err == nil
	})
	if err != nil {
		return // closed before
	}
	b := []byte("x")
	if _, err := c.sock.Write(b); err == nil {
		_, _ = c.sock.Read(b)
	}
}

func (c *connection) close() { c.sock.Close() }

// arrive opens connections, rate a second, until ctx ends or n are open (0: no
// limit), and hands them to take. Every silentEvery-th is half open (0: none).
func (s *site) arrive(ctx context.Context, rate, n, silentEvery int, take func(*connection)) error {
	return s.client.Do(func() error {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 1; n == 0 || i <= n; i++ {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			port := uint16(openPort)
			if silentEvery > 0 && i%silentEvery == 0 {
				port = silentPort
			}
			c, err := open(s.key(port))
			if err != nil {
				return err
			}
			take(c)
		}
		return nil
	})
}

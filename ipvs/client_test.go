package ipvs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fakeKernel answers as the family IPVS.
func fakeKernel(t *testing.T, answer func(genetlink.Message) ([]genetlink.Message, error)) *Client {
	t.Helper()
	f := genetlink.Family{ID: 33, Name: familyName, Version: familyVersion}
	conn := genltest.Dial(genltest.ServeFamily(f, func(g genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		return answer(g)
	}))
	c, err := NewClient(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRequests: the bytes that the kernel is sent (little-endian machines).
func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*Client) error
		cmd  uint8
		want string
	}{
		{
			"start", func(c *Client) error {
				return c.StartDaemon(Daemon{Backup, "lo", 82, 44, netip.MustParseAddr("224.0.0.81"), 8848, 1})
			}, cmdNewDaemon,
			"3c000380 08000100 02000000 07000200 6c6f0000 08000300 52000000 06000400 2c000000 08000500 e0000051 06000700 90220000 05000800 01000000",
		},
		{
			"stop", func(c *Client) error { return c.StopDaemon(Master) }, cmdDelDaemon,
			"0c000380 08000100 01000000",
		},
		{
			"real servers", func(c *Client) error {
				_, err := c.Dests(Service{Family: unix.AF_INET, Protocol: 6, Addr: netip.MustParseAddrPort("10.0.0.1:80")})
				return err
			}, cmdGetDest,
			"30000180 06000100 02000000 06000200 06000000 14000300 0a000001 00000000 00000000 00000000 06000400 00500000",
		},
		{
			"real servers of a mark", func(c *Client) error {
				_, err := c.Dests(Service{Family: unix.AF_INET, FWMark: 5})
				return err
			}, cmdGetDest,
			"14000180 06000100 02000000 08000500 05000000",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got genetlink.Message
			c := fakeKernel(t, func(g genetlink.Message) ([]genetlink.Message, error) {
				got = g
				return []genetlink.Message{{}}, nil
			})
			if err := tt.do(c); err != nil {
				t.Fatal(err)
			}
			if got.Header.Command != tt.cmd || got.Header.Version != 1 || !bytes.Equal(got.Data, unhex(t, tt.want)) {
				t.Errorf("sent %+v %x\nwant %d %s", got.Header, got.Data, tt.cmd, tt.want)
			}
		})
	}
}

// The kernel may leave a stop without an answer; then what runs decides.
func TestStopWithoutAnswer(t *testing.T) {
	for _, tt := range []struct {
		name, runs string
		ok         bool
	}{
		{"gone", "", true},
		{"another runs", "34000300 08000100 01000000 07000200 6c6f0000 08000300 52000000 06000400 2c000000 08000500 e0000051 06000700 90220000", true},
		{"still there", "34000300 08000100 02000000 07000200 6c6f0000 08000300 52000000 06000400 2c000000 08000500 e0000051 06000700 90220000", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeKernel(t, func(g genetlink.Message) ([]genetlink.Message, error) {
				if g.Header.Command == cmdDelDaemon {
					return nil, os.ErrDeadlineExceeded
				}
				return []genetlink.Message{{Data: unhex(t, tt.runs)}}, nil
			})
			if err := c.StopDaemon(Backup); (err == nil) != tt.ok {
				t.Error(err)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	answer := func(data string) func(genetlink.Message) ([]genetlink.Message, error) {
		return func(genetlink.Message) ([]genetlink.Message, error) {
			return []genetlink.Message{{Data: unhex(t, data)}}, nil
		}
	}
	t.Run("threads", func(t *testing.T) {
		c := fakeKernel(t, answer("34000300 08000100 02000000 07000200 6c6f0000 08000300 52000000 06000400 2c000000 08000500 e0000051 06000700 90220000"))
		got, err := c.Daemons()
		want := []Daemon{{Backup, "lo", 82, 44, netip.MustParseAddr("224.0.0.81"), 8848, 0}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("info", func(t *testing.T) {
		got, err := fakeKernel(t, answer("08000100 01020100 08000200 00100000")).Info()
		if err != nil || got != (Info{1, 2, 1, 4096}) && got != (Info{2, 1, 0, 4096}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		if got, err := fakeKernel(t, answer("08000300 08000100")).Daemons(); err == nil {
			t.Errorf("%+v", got)
		}
	})
	t.Run("service without address", func(t *testing.T) {
		if got, err := fakeKernel(t, answer("0c000100 06000100 02000000")).Services(); err == nil {
			t.Errorf("%+v", got)
		}
	})
}

func TestErrorsNamed(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.EEXIST, "one runs already"},
		{unix.ENODEV, "no such interface"},
		{unix.EPERM, "CAP_NET_ADMIN"},
	} {
		c := fakeKernel(t, func(genetlink.Message) ([]genetlink.Message, error) {
			return nil, genltest.Error(int(tt.errno))
		})
		err := c.StartDaemon(Daemon{Role: Master, Interface: "syncd0"})
		if !errors.Is(err, tt.errno) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `master sync thread on "syncd0"`) {
			t.Errorf("%v: %v", tt.errno, err)
		}
	}
}

func TestNoFamily(t *testing.T) {
	conn := genltest.Dial(func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		return nil, genltest.Error(int(unix.ENOENT))
	})
	defer conn.Close()
	if _, err := NewClient(conn); !errors.Is(err, ErrNotSupported) || errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
}

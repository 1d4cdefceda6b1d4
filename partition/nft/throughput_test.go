package nft_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/partition"
)

// A served director answers HTTP on the VIP, to one client.
type servedHTTP struct {
	client *host
	conn   net.Conn // kept
}

// newServedHTTP starts a director, with a filter or without any.
func newServedHTTP(b *testing.B, filtered bool) *servedHTTP {
	client, d := newHost(b, "client"), newHost(b, "director")
	client.join(d, "eth1")
	client.run("ip addr add 10.9.0.1/24 dev eth1")
	d.run("ip addr add 10.9.0.100/32 dev lo")
	d.run("ip addr add 10.9.0.2/24 dev eth0")
	mac := d.mac("eth0")
	if filtered {
		d.filter(b, plain(), partition.FullSet(256))
		mac = sharedMAC.String()
	}
	client.run("ip neigh replace 10.9.0.100 lladdr " + mac + " dev eth1 nud permanent")
	var ln net.Listener
	d.do(func() (err error) {
		ln, err = net.Listen("tcp4", fmt.Sprintf("%v:%d", vip, port))
		return err
	})
	page := make([]byte, 4096)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(page) })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	b.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
	s := &servedHTTP{client: client}
	client.do(func() (err error) {
		s.conn, err = net.Dial("tcp4", fmt.Sprintf("%v:%d", vip, port))
		return err
	})
	b.Cleanup(func() { s.conn.Close() })
	return s
}

// get asks for the page once.
func get(c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// kept asks n times on one connection.
func (s *servedHTTP) kept(n int) error {
	r := bufio.NewReader(s.conn)
	for range n {
		if err := get(s.conn, r); err != nil {
			return err
		}
	}
	return nil
}

// fresh asks n times, each on a connection of its own, which the server is left
// to close last, so that no port waits.
func (s *servedHTTP) fresh(n int) error {
	return s.client.try(func() error {
		for range n {
			c, err := net.Dial("tcp4", fmt.Sprintf("%v:%d", vip, port))
			if err != nil {
				return err
			}
			c.(*net.TCPConn).SetLinger(0)
			if err := errors.Join(get(c, bufio.NewReader(c)), c.Close()); err != nil {
				return err
			}
		}
		return nil
	})
}

// BenchmarkRequests measures what HTTP costs with a director's filter and
// without one: requests of 4 KiB answers, on one connection and each on its
// own. us is the CPU of client and server together for a request, since the
// machine has other things to do; admitted/none is the ratio.
func BenchmarkRequests(b *testing.B) {
	none, admitted := newServedHTTP(b, false), newServedHTTP(b, true)
	for _, c := range []struct {
		name string
		ask  func(s *servedHTTP, n int) error
		n    int
	}{
		{"kept", (*servedHTTP).kept, 200},
		{"fresh", (*servedHTTP).fresh, 50},
	} {
		b.Run(c.name, func(b *testing.B) {
			var cost, took [2][]float64
			for b.Loop() {
				for i, s := range []*servedHTTP{none, admitted} {
					start, began := cpuTime(b, unix.CLOCK_PROCESS_CPUTIME_ID), time.Now()
					if err := c.ask(s, c.n); err != nil {
						b.Fatal(err)
					}
					cost[i] = append(cost[i], float64(cpuTime(b, unix.CLOCK_PROCESS_CPUTIME_ID)-start)/1000/float64(c.n))
					took[i] = append(took[i], time.Since(began).Seconds()/float64(c.n))
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(cost[0]), "us-none")
			b.ReportMetric(median(cost[1]), "us-admitted")
			b.ReportMetric(median(cost[1])/median(cost[0]), "admitted/none")
			b.ReportMetric(1/median(took[0]), "requests/s-none")
			b.ReportMetric(1/median(took[1]), "requests/s-admitted")
		})
	}
}

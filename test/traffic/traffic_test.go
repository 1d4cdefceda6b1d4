package traffic

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve answers each connection to a loopback listener with handle.
func serve(t *testing.T, handle func(c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func firstFlow(t *testing.T, l *Log) Flow {
	t.Helper()
	if len(l.Flows()) == 0 {
		t.Fatal("no flow was opened")
	}
	return l.Flows()[0]
}

func TestDownloadIsJudged(t *testing.T) {
	dir := t.TempDir()
	files, err := MakeFiles(dir, 1, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(filepath.Join(dir, files[0].Path))
	if err != nil {
		t.Fatal(err)
	}
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
	bad := append([]byte{body[0] ^ 1}, body[1:]...)
	for _, tc := range []struct {
		name   string
		answer func(c *net.TCPConn)
		lost   string
	}{
		{"whole", func(c *net.TCPConn) { io.WriteString(c, head); c.Write(body) }, ""},
		{"one bit wrong", func(c *net.TCPConn) { io.WriteString(c, head); c.Write(bad) }, "wrong bytes"},
		{"cut short", func(c *net.TCPConn) { io.WriteString(c, head); c.Write(body[:500]) }, "closed before its time"},
		{"reset", func(c *net.TCPConn) { io.WriteString(c, head); c.Write(body[:500]); c.SetLinger(0) }, "connection reset"},
		{"not found", func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") }, "wrong bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := serve(t, func(c *net.TCPConn) {
				br := bufio.NewReader(c)
				for {
					if line, err := br.ReadString('\n'); err != nil || line == "\r\n" {
						break
					}
				}
				tc.answer(c)
			})
			l := NewLog()
			d := &Downloader{Log: l, To: to, Files: files, Silence: 10 * time.Second}
			d.one(t.Context(), nil, files[0])
			f := firstFlow(t, l)
			if !strings.HasPrefix(f.Lost, tc.lost) || (tc.lost == "") != (f.Lost == "") {
				t.Errorf("lost = %q, want %q", f.Lost, tc.lost)
			}
			if f.Ended.IsZero() {
				t.Error("the flow did not end")
			}
		})
	}
}

func TestSilenceLosesAFlow(t *testing.T) {
	to := serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	l := NewLog()
	q := &Quieter{Log: l, To: to, Every: time.Hour, Silence: 50 * time.Millisecond}
	q.one(t.Context(), make(chan struct{}))
	if f := firstFlow(t, l); f.Lost != "silence" {
		t.Errorf("lost = %q, want silence", f.Lost)
	}
}

func TestQuietLinesAreCompared(t *testing.T) {
	for _, tc := range []struct{ name, answer, lost string }{
		{"echoed", "", ""},
		{"another flow's line", "$13\r\nflow-8-line-0\r\n", "wrong bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := serve(t, func(c *net.TCPConn) {
				br := bufio.NewReader(c)
				for {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					word := strings.TrimSuffix(strings.TrimPrefix(line, "ECHO "), "\r\n")
					if tc.answer == "" {
						fmt.Fprintf(c, "$%d\r\n%s\r\n", len(word), word)
					} else {
						io.WriteString(c, tc.answer)
					}
				}
			})
			l := NewLog()
			q := &Quieter{Log: l, ID: 7, To: to, Every: time.Millisecond, Silence: 10 * time.Second}
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() { q.one(t.Context(), stop); close(done) }()
			for tc.lost == "" {
				if l.Totals().Lines >= 3 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			close(stop)
			<-done
			if f := firstFlow(t, l); !strings.HasPrefix(f.Lost, tc.lost) || (tc.lost == "") != (f.Lost == "") {
				t.Errorf("lost = %q, want %q", f.Lost, tc.lost)
			}
		})
	}
}

func TestShortRequestsAreRetriedAndCounted(t *testing.T) {
	var mu sync.Mutex
	n := 0
	to := serve(t, func(c *net.TCPConn) {
		mu.Lock()
		n++
		first := n == 1
		mu.Unlock()
		if first {
			c.SetLinger(0)
			return
		}
		bufio.NewReader(c).ReadString('\n')
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	l := NewLog()
	s := &Shorter{Log: l, To: to, Path: "/", Pace: time.Millisecond, Limit: 10 * time.Second, Tries: 2}
	ctx, cancel := context.WithCancel(t.Context())
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { s.Run(ctx, stop); close(done) }()
	for l.Totals().Short.Done == 0 {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	<-done
	cancel()
	if got := l.Totals().Short; got.Retried != 1 || got.Failed != 0 {
		t.Errorf("totals %+v, want one retry and no failure", got)
	}
}

func TestFlowWindow(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }
	f := Flow{Kind: Download, Opened: at(0), Progress: at(30), Stalls: []Stall{{at(10), 2 * time.Second}}}
	for _, tc := range []struct {
		t    float64
		want bool
	}{{0.5, false}, {1.5, true}} {
		if got := f.OpenAt(at(tc.t), time.Second); got != tc.want {
			t.Errorf("OpenAt(%v) = %v", tc.t, got)
		}
	}
	for _, tc := range []struct {
		from, to, now float64
		want          time.Duration
	}{
		{0, 9, 30, 0},
		{11, 20, 30, 2 * time.Second},
		{29, 40, 35, 5 * time.Second}, // one that still goes on
	} {
		if got := f.LongestStall(at(tc.from), at(tc.to), at(tc.now)); got != tc.want {
			t.Errorf("LongestStall(%v, %v) at %v = %v, want %v", tc.from, tc.to, tc.now, got, tc.want)
		}
	}
}

// A download that is told to stop early on is not waited for, and not lost.
func TestDownloadBegunLate(t *testing.T) {
	files, err := MakeFiles(t.TempDir(), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	stop, more := make(chan struct{}), make(chan struct{})
	to := serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"+strings.Repeat("x", 10))
		<-more
		io.WriteString(c, "x")
		io.Copy(io.Discard, c)
	})
	l := NewLog()
	d := &Downloader{Log: l, To: to, Files: files, Silence: time.Minute}
	done := make(chan struct{})
	go func() { d.Run(t.Context(), stop); close(done) }()
	for l.Totals().Bytes < 10 {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	close(more)
	<-done
	if f := firstFlow(t, l); !f.Abandoned || f.Lost != "" || f.Ended.IsZero() {
		t.Errorf("got %+v, want an abandoned download that is not lost", f)
	}
}

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"saru/test/lab"
)

// accept serves each connection of ln until the test ends, beside it.
func (s *site) accept(ln net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	s.beside(func() { ln.Close() }, func() {
		defer wg.Wait()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				stop := s.closeAtEnd(c)
				defer stop()
				serve(c)
			})
		}
	})
}

// askUDP sends a datagram, each second anew, until an answer is taken.
func askUDP(c *net.UDPConn, datagram func(try int) []byte, take func(answer []byte) bool) error {
	buf := make([]byte, 2048)
	for try := range 90 {
		if _, err := c.Write(datagram(try)); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		for {
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if take(buf[:n]) {
				return nil
			}
		}
	}
	return errors.New("nobody answers")
}

// A download is a file on its way to a client.
type download struct {
	*lab.Process
	what string
}

// download starts curl with some arguments at a client.
func (s *site) download(client *lab.Node, what, curl string) download {
	s.t.Helper()
	script := fmt.Sprintf("curl -sS -m 400 %s | sha256sum; exit ${PIPESTATUS[0]}", curl)
	p, err := client.Start(s.t.Context(), "download-"+strings.ReplaceAll(what, " ", "-"), []string{"bash", "-c", script}, lab.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	return download{p, what}
}

// underWay counts the downloads that have not ended.
func underWay(all []download) (n int) {
	for _, d := range all {
		select {
		case <-d.Done():
		default:
			n++
		}
	}
	return n
}

// arrive waits until all downloads have ended, each with the file.
func (s *site) arrive(all []download, file []byte) {
	s.t.Helper()
	want := fmt.Sprintf("%x", sha256.Sum256(file))
	for _, d := range all {
		err := d.Wait()
		out, rerr := os.ReadFile(d.Log)
		if err != nil || rerr != nil || !strings.HasPrefix(string(out), want) {
			s.t.Errorf("%s: %v: %s", d.what, errors.Join(err, rerr), out)
		}
	}
}

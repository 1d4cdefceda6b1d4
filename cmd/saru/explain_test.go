package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"saru/internal/director"
)

func (n *node) explain(args ...string) (*director.Explanation, error) {
	out, err := n.saru(append([]string{"explain", "--json"}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var e director.Explanation
	return &e, json.Unmarshal([]byte(out), &e)
}

// Every director names the same acceptor of a flow, and that one takes it.
func TestExplainNamesTheAcceptor(t *testing.T) {
	l := newLab(t, 2, "")
	l.start()
	servers := l.greet("tcp4", "10.9.0.100:80")
	defer servers.close()
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	for port := 30000; port < 30012; port++ {
		from := fmt.Sprintf("10.9.0.1:%d", port)
		var told []*director.Explanation
		for _, n := range l.nodes {
			e, err := n.explain("tcp", from, "10.9.0.100:80")
			l.must(err)
			if e.Here.Node != n.name || !e.Here.Lease || e.Here.Open != (e.Owner == n.name) {
				t.Errorf("%s says of itself %+v, owner %s", n.name, e.Here, e.Owner)
			}
			e.Here = director.HereExplanation{}
			told = append(told, e)
		}
		if !reflect.DeepEqual(told[0], told[1]) {
			t.Errorf("told\n%+v\nand\n%+v", told[0], told[1])
		}
		var by string
		l.must(in(client, func() (err error) {
			by, err = greeting("tcp4", from, "10.9.0.100:80")
			return err
		}))
		if e := told[0]; by != e.Owner || len(e.Open) != 1 || e.Open[0] != by {
			t.Errorf("%s took %s, explained as %+v", by, from, e)
		}
	}
	out, err := l.nodes[0].saru("explain", "icmp", "10.9.0.1", "10.9.0.100")
	if err != nil || !strings.Contains(out, "tcpdump -eni eth0 'icmp and (") || !strings.Contains(out, "no ports") {
		t.Errorf("%v:\n%s", err, out)
	}
	t.Log("\n" + out)
	// What the clients sent was counted with their buckets, at both directors.
	sums := map[string]uint64{}
	for _, n := range l.nodes {
		out, err := n.saru("buckets", "--json")
		l.must(err)
		var b director.Buckets
		l.must(json.Unmarshal([]byte(out), &b))
		for _, s := range b.Buckets {
			if s.Count.OpenAdmitted > 0 && !s.Open || s.Open != (s.Owner == n.name) {
				t.Errorf("%s: %+v", n.name, s)
			}
			sums["admitted"] += s.Count.OpenAdmitted
			sums["refused"] += s.Count.OpenRefused
		}
	}
	if sums["admitted"] != 12 || sums["refused"] != 12 {
		t.Errorf("of 12 connections %v packets that open one", sums)
	}
	// The master does not hear itself.
	served := 0
	for _, n := range l.nodes {
		out, err := n.saru("check")
		l.must(err)
		switch {
		case strings.Contains(out, "10.9.0.100: served with the shared MAC already"):
			served++
		case !strings.Contains(out, "10.9.0.100: nobody else on eth0 answers for it"):
			t.Errorf("check of %s:\n%s", n.name, out)
		}
	}
	if served != 1 {
		t.Errorf("%d directors find the address served", served)
	}
	for _, bad := range [][]string{{"tcp", "10.9.0.1", "10.9.0.100:80"}, {"tcp"}, {"tcp", "10.9.0.1:1", "10.9.0.99:80"}} {
		if out, err := l.nodes[0].saru(append([]string{"explain"}, bad...)...); err == nil || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: %v: %s", bad, err, out)
		}
	}
}

// Greeters are servers of all directors that say the director's name.
type greeters struct {
	listeners []net.Listener
	done      chan struct{}
}

func (l *lab) greet(network, addr string) *greeters {
	l.Helper()
	g := &greeters{done: make(chan struct{}, len(l.nodes))}
	for _, n := range l.nodes {
		var ln net.Listener
		l.must(in(n.ns, func() (err error) {
			ln, err = net.Listen(network, addr)
			return err
		}))
		g.listeners = append(g.listeners, ln)
		go func() {
			defer func() { g.done <- struct{}{} }()
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				// HTTP, so that curl can ask too.
				_ = c.SetDeadline(time.Now().Add(answerWithin))
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(n.name), n.name)
				}
				c.Close()
			}
		}()
	}
	return g
}

func (g *greeters) close() {
	for _, ln := range g.listeners {
		ln.Close()
		<-g.done
	}
}

// greeting connects from one address to another and returns who answers.
func greeting(network, from, to string) (string, error) {
	local, err := net.ResolveTCPAddr(network, from)
	if err != nil {
		return "", err
	}
	c, err := (&net.Dialer{LocalAddr: local, Timeout: answerWithin}).Dial(network, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	return lastLine(c)
}

const answerWithin = 5 * time.Second

func lastLine(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	text := string(b)
	return text[strings.LastIndex(text, "\n")+1:], err
}

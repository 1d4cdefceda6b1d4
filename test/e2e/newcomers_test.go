package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/test/lab"
)

const (
	// newcomersRate is what an emulated machine can do, with three directors,
	// the switch and both ends in it.
	newcomersRate = 100                    // connections a second
	delay         = 150 * time.Millisecond // each way
	slowDelay     = 700 * time.Millisecond // clients repeat a SYN after 1 s
	// underWayAtMost bounds what waits for a machine that is busy otherwise.
	underWayAtMost = 2000
	// young is how long ago a connection may have begun that a power cut ends:
	// handshakes are not told to the other directors.
	young = 5 * time.Second
	// told bounds how long the client of such a connection waits for its end.
	told = 40 * time.Second
)

// Connections are opened at a steady pace, with a round trip of 300 ms, while a
// director joins, one is drained, returns, and one loses its power. The join
// ends though the tables never rest. None fails but those that were young at
// the power cut, and these do not wait for long.
func TestNewConnectionsThroughout(t *testing.T) {
	s := newSite(t, lab.Topology{
		Name: "newcomers", Directors: 3, RealServers: 2, Clients: 1,
		Services: []lab.Service{{Proto: "tcp", Port: talkPort}},
	}, setup{stopped: true})
	s.serveEcho(talkPort)
	d1, d2, d3 := s.lab.Directors[0], s.lab.Directors[1], s.lab.Directors[2]
	s.start(d1)
	s.start(d2)
	s.off[d3.Name] = true
	s.whole()
	if err := s.lab.Clients[0].Netem(0, delay); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.lab.Clients[0].Start(t.Context(), "opener",
		[]string{self, "opener", fmt.Sprintf("%v:%d", s.lab.Topology.VIP, talkPort), fmt.Sprint(newcomersRate)}, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := &opener{site: s, log: p.Log}
	o.goOn("two directors")
	began := time.Now()
	s.start(d3)
	delete(s.off, d3.Name)
	s.whole()
	t.Logf("d3 joined within %v", time.Since(began).Round(time.Second))
	o.goOn("three directors")
	s.drain(d1)
	o.goOn("d1 drained")
	s.undrain(d1)
	o.goOn("d1 back")
	o.noneFailed()
	// A SYN is repeated before its answer comes, and the repetition goes to the
	// director that has taken the bucket meanwhile.
	if err := s.lab.Clients[0].Netem(0, slowDelay); err != nil {
		t.Fatal(err)
	}
	o.goOn("each SYN twice")
	s.drain(d3)
	o.goOn("d3 drained")
	s.undrain(d3)
	o.goOn("d3 back")
	o.noneFailed()
	if err := s.lab.Clients[0].Netem(0, delay); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	s.powerCut(d2)
	again := time.Now()
	o.goOn("d2 without power")
	if err := p.Term(2 * told); err != nil {
		t.Fatal(err)
	}
	all := o.read()
	late := 0
	for _, f := range all.failures {
		if f.Began.Before(cut.Add(-young)) || f.Began.After(again.Add(lease)) || f.Took > told {
			t.Errorf("a connection that began %v after the cut: %s, after %v", f.Began.Sub(cut), f.Why, f.Took)
		} else {
			late++
		}
	}
	t.Logf("%d connections, %d failed that were young at the power cut, %d others; the slowest answer took %v",
		all.last.Done, late, len(all.failures)-late, all.last.Slowest)
}

// What the opener tells, one JSON object a line.
type (
	failure struct {
		Began time.Time
		Took  time.Duration
		Why   string
	}
	progress struct {
		Done    int // answered
		Slowest time.Duration
	}
	report struct {
		Failure  *failure
		Progress *progress
	}
)

// openerMain opens connections until SIGTERM, and waits for what is under way.
func openerMain(to string, rate int, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var mu sync.Mutex
	var p progress
	enc := json.NewEncoder(out)
	tell := func(v report) {
		// Its log is all that this process can tell anything by.
		_ = enc.Encode(v)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, underWayAtMost)
	tick, second := time.NewTicker(time.Second/time.Duration(rate)), time.NewTicker(time.Second)
	defer tick.Stop()
	defer second.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-second.C:
			mu.Lock()
			tell(report{Progress: &p})
			mu.Unlock()
		case <-tick.C:
			select {
			case slots <- struct{}{}:
			default:
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				began := time.Now()
				err := exchangeOnce(to)
				took := time.Since(began)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					tell(report{Failure: &failure{began, took, err.Error()}})
					return
				}
				p.Done++
				p.Slowest = max(p.Slowest, took)
			})
		}
	}
	wg.Wait()
	tell(report{Progress: &p})
	return nil
}

// exchangeOnce has one line sent back over a connection of its own.
func exchangeOnce(to string) error {
	c, err := net.DialTimeout("tcp4", to, 2*told)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(c.(*net.TCPConn).SetLinger(0), c.SetDeadline(time.Now().Add(2*told))); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "line\n"); err != nil {
		return err
	}
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "line\n" {
		return fmt.Errorf("got %q: %w", got, err)
	}
	return nil
}

// An opener is the process, as its log tells.
type opener struct {
	*site
	log string
}

type openerLog struct {
	failures []failure
	last     progress
}

func (o *opener) read() (all openerLog) {
	o.t.Helper()
	b, err := os.ReadFile(o.log)
	if err != nil {
		o.t.Fatal(err)
	}
	whole := b[:bytes.LastIndexByte(b, '\n')+1]
	for dec := json.NewDecoder(bytes.NewReader(whole)); ; {
		var v report
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			o.t.Fatalf("%s: %v", o.log, err)
		}
		if v.Failure != nil {
			all.failures = append(all.failures, *v.Failure)
		}
		if v.Progress != nil {
			all.last = *v.Progress
		}
	}
}

// goOn waits for some seconds' worth of connections.
func (o *opener) goOn(when string) {
	o.t.Helper()
	start, began := o.read().last.Done, time.Now()
	o.eventually("connections, "+when, func() error {
		if got := o.read().last.Done - start; got < 8*newcomersRate {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
	all := o.read()
	o.t.Logf("%s: %.0f connections a second, %d failed so far", when, float64(all.last.Done-start)/time.Since(began).Seconds(), len(all.failures))
}

func (o *opener) noneFailed() {
	o.t.Helper()
	failures := o.read().failures
	for _, f := range failures {
		o.t.Errorf("a connection that began at %v failed, and no power cut met it: %s, after %v", f.Began, f.Why, f.Took)
	}
	if len(failures) > 0 {
		o.tellCounters()
	}
}

// tellCounters logs who has reset or dropped something, and for what.
func (o *opener) tellCounters() {
	for _, n := range o.lab.Nodes() {
		text, err := n.Run(o.t.Context(), "nstat", "-as")
		o.t.Logf("%v: %v\n%s", n, err, strings.Join(tellingCounters.FindAllString(text, -1), "\n"))
	}
}

// tellingCounters match the lines of nstat(8) about resets and drops, whose
// count is not 0.
var tellingCounters = regexp.MustCompile(`(?mi)^Tcp\S*(reset|rst|drop|overflow|cookie|challenge|retrans|listen)\S* +[1-9]\d*`)

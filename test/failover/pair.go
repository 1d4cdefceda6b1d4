package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"saru/test/datagrams"
	"saru/test/lab"
)

const (
	service = 9000
	flows   = 100
	rate    = 500 // datagrams a second
	// patience bounds each wait; nothing measured comes near it.
	patience = 60 * time.Second
)

// A pair is two directors of one system, and a client that asks all the time.
type pair struct {
	System
	dir    string
	lab    *lab.Lab
	ledger *datagrams.Ledger
	stop   context.CancelFunc
	tasks  sync.WaitGroup

	mu        sync.Mutex
	listeners map[string]*net.UDPConn
}

// open starts a pair and waits until it serves.
func open(ctx context.Context, s System, name, dir string) (*pair, error) {
	p := &pair{System: s, dir: filepath.Join(dir, name), ledger: &datagrams.Ledger{Flows: flows}, listeners: map[string]*net.UDPConn{}}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	p.lab, err = lab.New(ctx, lab.Topology{Name: name, Directors: 2, Clients: 1}, p.dir)
	if err != nil {
		return nil, err
	}
	ctx, p.stop = context.WithCancel(ctx)
	for _, d := range p.lab.Directors {
		if err := p.boot(ctx, d); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	var conns []*net.UDPConn
	if err := p.lab.Clients[0].Do(func() (err error) {
		conns, err = p.ledger.Dial(netip.AddrPortFrom(netip.MustParseAddr(vip), service))
		return err
	}); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.tasks.Go(func() {
		p.ledger.Send(ctx, conns, rate)
		datagrams.Close(conns)
	})
	if err := p.serves(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// boot starts a director's daemon, and notes what it accepts.
func (p *pair) boot(ctx context.Context, d *lab.Director) error {
	var c *net.UDPConn
	if err := d.Do(func() (err error) { c, err = datagrams.Listen(service); return err }); err != nil {
		return err
	}
	p.mu.Lock()
	p.listeners[d.Name] = c
	p.mu.Unlock()
	p.tasks.Go(func() { p.ledger.Receive(c, d.Name) })
	return p.start(ctx, p, d)
}

// serves waits until nothing is lost, and the directors work that should.
func (p *pair) serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for quiet := 0; quiet < 3; {
		mark := time.Now()
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return fmt.Errorf("%s does not serve: %w", p.Name, err)
		}
		s := p.ledger.Between(mark, time.Now().Add(-50*time.Millisecond))
		if s.Sent > 0 && s.Lost == 0 && (!p.both || len(s.By) == 2) {
			quiet++
		} else {
			quiet = 0
		}
	}
	return sleep(ctx, p.settle)
}

// cut takes a director's power, and returns how long it took until another
// accepted what was its. The director is not there afterwards.
func (p *pair) cut(ctx context.Context, d *lab.Director) (time.Duration, error) {
	at := time.Now()
	if err := d.CutLink(); err != nil {
		return 0, err
	}
	var gone sync.WaitGroup
	var goneErr error
	p.mu.Lock()
	p.listeners[d.Name].Close() // else it holds the namespace
	p.mu.Unlock()
	gone.Go(func() { goneErr = d.PowerCut() })
	defer gone.Wait()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if first := p.ledger.Takeover(d.Name, at); !first.IsZero() {
			gone.Wait()
			return first.Sub(at.Round(0)), goneErr
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, fmt.Errorf("%s: nobody took over from %s: %w", p.Name, d.Name, err)
		}
	}
}

// victim returns the director that accepts most.
func (p *pair) victim() *lab.Director {
	by := p.ledger.Between(time.Now().Add(-300*time.Millisecond), time.Now()).By
	if by[p.lab.Directors[1].Name] > by[p.lab.Directors[0].Name] {
		return p.lab.Directors[1]
	}
	return p.lab.Directors[0]
}

func (p *pair) close() error {
	p.stop()
	p.mu.Lock()
	for _, c := range p.listeners {
		c.Close()
	}
	p.mu.Unlock()
	p.tasks.Wait()
	return p.lab.Close()
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

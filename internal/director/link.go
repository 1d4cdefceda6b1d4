package director

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A carrier watches the link of the share's interface. It is a task.
type carrier struct {
	name   string
	engine *Engine
	up     chan struct{}
}

// Ready is closed when the link is watched.
func (c *carrier) Ready() <-chan struct{} { return c.up }

func (c *carrier) String() string { return "carrier of " + c.name }

// Run tells the engine of every change until ctx ends. Messages can be lost
// when very many links change, so it looks once a second too.
func (c *carrier) Run(ctx context.Context) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK})
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	close(c.up)
	for {
		ifi, err := net.InterfaceByName(c.name)
		has := err == nil && ifi.Flags&net.FlagRunning != 0 && ifi.Flags&net.FlagUp != 0
		c.engine.post(ctx, func(now time.Duration) { c.engine.setLink(now, c.name, has) })
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return fmt.Errorf("watch links: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		_, err = conn.Receive()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("watch links: %w", err)
		}
	}
}

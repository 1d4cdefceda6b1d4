package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"saru/test/lab"
)

const (
	ftpPort     = 21
	ftpDataPort = 20 // that active data connections come from (RFC 959 section 3.2)
)

// An ftpServer serves one file to anybody, in passive and active mode (RFC 959,
// RFC 2428), on a real server.
type ftpServer struct {
	node *lab.Node
	file []byte
}

// serveFTP has each real server serve a file at its own address, as under
// LVS-NAT.
func (s *site) serveFTP(file []byte) {
	s.t.Helper()
	for _, r := range s.lab.RealServers {
		f := &ftpServer{r, file}
		ln, err := f.listen(ftpPort)
		if err != nil {
			s.t.Fatal(err)
		}
		s.accept(ln, f.session)
	}
}

func (f *ftpServer) listen(port uint16) (ln net.Listener, err error) {
	err = f.node.Do(func() error {
		ln, err = net.Listen("tcp4", netip.AddrPortFrom(f.node.Addr, port).String())
		return err
	})
	return ln, err
}

// session is a control connection. It ends when the client says QUIT, or with
// the first error.
func (f *ftpServer) session(c net.Conn) {
	say := func(format string, args ...any) error {
		_, err := fmt.Fprintf(c, format+"\r\n", args...)
		return err
	}
	var data func() (net.Conn, error) // what the client has asked for last
	lines := bufio.NewScanner(c)
	for err := say("220 ready"); err == nil && lines.Scan(); {
		command, arg, _ := strings.Cut(lines.Text(), " ")
		switch strings.ToUpper(command) {
		case "USER":
			err = say("230 welcome")
		case "PWD":
			err = say(`257 "/"`)
		case "TYPE":
			err = say("200 as you like")
		case "SIZE":
			err = say("213 %d", len(f.file))
		case "EPSV", "PASV":
			var ln net.Listener
			if ln, err = f.listen(0); err != nil {
				break
			}
			data = func() (net.Conn, error) {
				defer ln.Close()
				return ln.Accept()
			}
			port := ln.Addr().(*net.TCPAddr).Port
			if command == "EPSV" {
				err = say("229 Entering Extended Passive Mode (|||%d|)", port)
			} else {
				host := strings.ReplaceAll(f.node.Addr.String(), ".", ",")
				err = say("227 Entering Passive Mode (%s,%d,%d).", host, port>>8, port&255)
			}
		case "PORT", "EPRT":
			var to netip.AddrPort
			if to, err = parsePort(arg); err == nil {
				data = func() (net.Conn, error) { return f.dial(to) }
				err = say("200 will do")
			}
		case "RETR":
			err = errors.Join(say("150 here it comes"), f.send(data), say("226 that was it"))
		case "QUIT":
			say("221 goodbye")
			return
		default:
			err = say("502 no %s here", command)
		}
	}
}

// dial opens an active data connection, from the port that is for them.
func (f *ftpServer) dial(to netip.AddrPort) (c net.Conn, err error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.node.Addr, ftpDataPort)),
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
			return errors.Join(err, cerr)
		},
	}
	err = f.node.Do(func() error {
		c, err = d.Dial("tcp4", to.String())
		return err
	})
	return c, err
}

func (f *ftpServer) send(data func() (net.Conn, error)) error {
	if data == nil {
		return errors.New("no data connection")
	}
	c, err := data()
	if err != nil {
		return err
	}
	return errors.Join(writeSlowly(c, f.file), c.Close())
}

// writeSlowly writes at slowRate, a piece four times a second.
func writeSlowly(w io.Writer, b []byte) error {
	tick := time.NewTicker(time.Second / 4)
	defer tick.Stop()
	for piece := range slices.Chunk(b, slowRate/4) {
		if _, err := w.Write(piece); err != nil {
			return err
		}
		<-tick.C
	}
	return nil
}

// parsePort reads the argument of PORT, h1,h2,h3,h4,p1,p2, or of EPRT,
// |1|address|port|.
func parsePort(arg string) (netip.AddrPort, error) {
	if f := strings.Split(arg, "|"); len(f) == 5 {
		return netip.ParseAddrPort(net.JoinHostPort(f[2], f[3]))
	}
	f := strings.Split(arg, ",")
	if len(f) != 6 {
		return netip.AddrPort{}, fmt.Errorf("address %q", arg)
	}
	addr, err := netip.ParseAddr(strings.Join(f[:4], "."))
	high, err1 := strconv.ParseUint(f[4], 10, 8)
	low, err2 := strconv.ParseUint(f[5], 10, 8)
	return netip.AddrPortFrom(addr, uint16(high<<8|low)), errors.Join(err, err1, err2)
}

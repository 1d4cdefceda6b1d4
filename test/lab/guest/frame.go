package guest

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// frameKind says what a frame of the channel carries.
type frameKind byte

const (
	frameHello  frameKind = 'h' // guest: init runs, send the job
	frameJob    frameKind = 'j' // host: a job as JSON
	frameStdout frameKind = '1' // guest: output of the program
	frameStderr frameKind = '2' // guest: output of the program
	frameSignal frameKind = 's' // host: one byte, a signal number for the program
	frameExit   frameKind = 'x' // guest: an exit as JSON; the last frame
)

// maxFrame bounds a payload, so that a corrupt length cannot ask for memory.
const maxFrame = 1 << 20

const frameHeader = 5

// job is what the host asks the guest's init to run.
type job struct {
	Argv    []string
	Dir     string
	Env     []string
	Release string // of the kernel whose modules Modules holds
	Modules string // the folder of the modules, as a path of the machine
	Out     bool   // a writable share is attached
}

// exit is how the program ended.
type exit struct {
	Code  int    // exit status, or 128 + signal number as in a shell
	Error string // set when the program could not be started
}

// frameWriter writes frames. It is safe for concurrent use.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (f *frameWriter) write(kind frameKind, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = append(f.buf[:0], byte(kind))
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(len(payload)))
	f.buf = append(f.buf, payload...)
	_, err := f.w.Write(f.buf)
	return err
}

// stream is an io.Writer whose writes become frames of one kind.
type stream struct {
	kind frameKind
	to   *frameWriter
}

func (s stream) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, maxFrame)
		if err := s.to.write(s.kind, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// readFrame reads one frame. Its error is io.EOF only between frames.
func readFrame(r io.Reader) (frameKind, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame %q of %d bytes, longer than %d", head[0], n, maxFrame)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("frame %q of %d bytes cut short: %w", head[0], n, err)
	}
	return frameKind(head[0]), payload, nil
}

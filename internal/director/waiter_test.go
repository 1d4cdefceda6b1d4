package director

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaiter(t *testing.T) {
	var p, q [2]int
	for _, pipe := range []*[2]int{&p, &q} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
	}
	w, err := newWaiter(p[0], q[0])
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	waited := func(d time.Duration) time.Duration {
		start := time.Now()
		if err := w.wait(d); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	const short, long = 10 * time.Millisecond, time.Hour
	if d := waited(short); d < short {
		t.Errorf("nothing to read: waited %v, want %v", d, short)
	}
	waited(-time.Second)
	for range 2 { // it stays readable until it is read
		unix.Write(q[1], []byte{1})
		waited(long)
		waited(long)
		unix.Read(q[0], make([]byte, 8))
		waited(short)
	}
	go unix.Write(p[1], []byte{1})
	waited(long)
}

func BenchmarkWaiter(b *testing.B) {
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	w, err := newWaiter(fd)
	if err != nil {
		b.Fatal(err)
	}
	defer w.close()
	b.ReportAllocs()
	for b.Loop() {
		if err := w.wait(time.Second); err != nil {
			b.Fatal(err)
		}
	}
}

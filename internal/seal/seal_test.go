package seal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/config"
)

func ring(t testing.TB, lines ...string) *Keyring {
	t.Helper()
	kr, err := ParseKeyring([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return kr
}

func fixedKey(b byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, KeySize))
}

func TestDatagramOpensOnceAndWhole(t *testing.T) {
	kr := ring(t, NewKey())
	s, o := NewSealer(kr, "heartbeat"), NewOpener(kr, "heartbeat")
	d, seq := s.Seal(nil, []byte("alive"))
	if len(d) != len("alive")+Overhead {
		t.Errorf("sealed 5 bytes into %d, want %d", len(d), 5+Overhead)
	}
	p, boot, n, err := o.Open(nil, d)
	if err != nil || string(p) != "alive" || boot != s.Boot() || n != seq {
		t.Fatalf("Open = %q, %x, %d, %v", p, boot, n, err)
	}
	if _, _, _, err := o.Open(nil, d); !errors.Is(err, ErrReplay) {
		t.Errorf("second Open of one datagram: %v, want ErrReplay", err)
	}
}

// A receiver keeps nothing of a sender whose datagram did not open, so garbage
// can neither fill its memory nor push living senders out.
func TestHostileDatagrams(t *testing.T) {
	kr := ring(t, fixedKey(1))
	s, o := NewSealer(kr, "sync"), NewOpener(kr, "sync")
	good, _ := s.Seal(nil, []byte("x"))
	change := func(i int) []byte { b := bytes.Clone(good); b[i] ^= 1; return b }
	foreign, _ := NewSealer(ring(t, fixedKey(2)), "sync").Seal(nil, []byte("x"))
	other, _ := NewSealer(kr, "heartbeat").Seal(nil, []byte("x"))
	for _, tc := range []struct {
		name string
		d    []byte
		want error
	}{
		{"empty", nil, ErrShort},
		{"one byte short of empty plaintext", good[:Overhead-1], ErrShort},
		{"truncated", good[:len(good)-1], ErrForged},
		{"unknown version", change(0), ErrVersion},
		{"reserved bits set", change(3), ErrVersion},
		{"foreign key", foreign, ErrKey},
		{"another purpose", other, ErrForged},
		{"boot changed", change(8), ErrForged},
		{"sequence changed", change(23), ErrForged},
		{"ciphertext changed", change(24), ErrForged},
		{"tag changed", change(len(good) - 1), ErrForged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, _, err := o.Open([]byte("kept"), tc.d)
			if !errors.Is(err, tc.want) {
				t.Errorf("Open: %v, want %v", err, tc.want)
			}
			if string(p) != "kept" {
				t.Errorf("Open left %q in dst, want it as it was", p)
			}
		})
	}
	if len(o.senders) != 0 {
		t.Errorf("%d senders remembered from datagrams that did not open", len(o.senders))
	}
}

func TestRotationWithoutGap(t *testing.T) {
	oldKey, newKey := fixedKey(1), fixedKey(2)
	steps := [][]string{{oldKey}, {oldKey, newKey}, {newKey, oldKey}, {newKey}}
	for i := 0; i+1 < len(steps); i++ {
		a, b := ring(t, steps[i]...), ring(t, steps[i+1]...)
		for _, dir := range [][2]*Keyring{{a, b}, {b, a}} {
			d, _ := NewSealer(dir[0], "p").Seal(nil, []byte("x"))
			if _, _, _, err := NewOpener(dir[1], "p").Open(nil, d); err != nil {
				t.Errorf("between step %d and %d: %v", i, i+1, err)
			}
		}
	}
}

func TestSendersAreBounded(t *testing.T) {
	kr := ring(t, fixedKey(1))
	o := NewOpener(kr, "p")
	for range maxSenders + 50 {
		d, _ := NewSealer(kr, "p").Seal(nil, nil)
		if _, _, _, err := o.Open(nil, d); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.senders) != maxSenders {
		t.Errorf("%d senders remembered, want %d", len(o.senders), maxSenders)
	}
}

// The window agrees with a set of all numbers seen, for random orders.
func TestWindowAgainstSet(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var w window
		seen := map[uint64]bool{}
		var top uint64
		for range 3000 {
			seq := top + uint64(r.IntN(200)) - uint64(min(100, top))
			if r.IntN(100) == 0 {
				seq += uint64(r.IntN(3000))
			}
			want := seq != 0 && !seen[seq] && (seq > top || top-seq < windowSize)
			if got := w.accept(seq); got != want {
				t.Fatalf("seed %d: accept(%d) with newest %d = %v, want %v", seed, seq, top, got, want)
			}
			seen[seq] = true
			top = max(top, seq)
		}
	}
}

func TestStream(t *testing.T) {
	kr := ring(t, fixedKey(1))
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	got := make(chan error, 1)
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxFrame/16)
	go func() {
		s, err := Server(b, kr, "bulk")
		if err == nil {
			var p []byte
			if p, err = s.Read(); err == nil {
				err = s.Write(p)
			}
		}
		got <- err
	}()
	c, err := Client(a, kr, "bulk")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(big); err != nil {
		t.Fatal(err)
	}
	p, err := c.Read()
	if err != nil || !bytes.Equal(p, big) {
		t.Fatalf("echo of %d bytes: got %d, %v", len(big), len(p), err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := c.Write(append(big, 0)); err == nil {
		t.Error("a frame over MaxFrame was sent")
	}
}

func TestStreamRefusesStrangers(t *testing.T) {
	for _, tc := range []struct {
		name           string
		client, server *Keyring
		cp, sp         string
		want           error
	}{
		{"foreign key", ring(t, fixedKey(2)), ring(t, fixedKey(1)), "p", "p", ErrKey},
		{"other purpose", ring(t, fixedKey(1)), ring(t, fixedKey(1)), "p", "q", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := net.Pipe()
			got := make(chan error, 1)
			go func() {
				_, err := Server(b, tc.server, tc.sp)
				b.Close()
				got <- err
			}()
			if _, err := Client(a, tc.client, tc.cp); err == nil {
				t.Error("the client accepted the server")
			}
			a.Close()
			if err := <-got; tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("server: %v, want %v", err, tc.want)
			}
		})
	}
}

// A server that goes away during the handshake is no forger.
func TestServerThatGoesAway(t *testing.T) {
	for said, want := range map[int]error{0: io.EOF, 31: io.ErrUnexpectedEOF, 32: io.EOF, 34: io.ErrUnexpectedEOF} {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			io.ReadFull(b, make([]byte, helloSize))
			b.Write(make([]byte, said))
		}()
		_, err := Client(a, ring(t, fixedKey(1)), "p")
		if !errors.Is(err, want) || errors.Is(err, ErrForged) || strings.Contains(err.Error(), "\n") {
			t.Errorf("after %d bytes: %v, want one line about %v", said, err, want)
		}
		a.Close()
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := NewKey() + "\n"
	for _, tc := range []struct {
		path, want string // want: part of the error, "" for none
	}{
		{write("good", "# cluster web\n\n"+good, 0o600), ""},
		{write("readonly", good, 0o400), ""},
		{filepath.Join(dir, "none"), "saru keygen"},
		{dir, "not a regular file"},
		{write("group", good, 0o640), "chmod 600"},
		{write("world", good, 0o604), "chmod 600"},
		{write("exec", good, 0o700), "chmod 600"},
		{write("empty", "# nothing\n", 0o600), "holds no key"},
		{write("short", "c2hvcnQ=\n", 0o600), "line 1"},
		{write("garbage", good+"not base64!\n", 0o600), "line 2"},
		{write("twice", good+good, 0o600), "repeats"},
		{write("many", strings.Repeat("x", 0)+keys(MaxKeys+1), 0o600), "more than"},
	} {
		_, err := LoadKeyring(tc.path)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.path, err)
		case tc.want == "":
		case err == nil:
			t.Errorf("%s: accepted, want an error with %q", tc.path, tc.want)
		case !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: %q, want one line with %q", tc.path, err, tc.want)
		case config.ExitStatus(err) != 2:
			t.Errorf("%s: exit status %d, want 2", tc.path, config.ExitStatus(err))
		case strings.Contains(err.Error(), "c2hvcnQ") || strings.Contains(err.Error(), "not base64!"):
			t.Errorf("%s: the error quotes the key file: %q", tc.path, err)
		}
	}
}

func keys(n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(NewKey() + "\n")
	}
	return b.String()
}

func FuzzOpen(f *testing.F) {
	kr := ring(f, fixedKey(1))
	s := NewSealer(kr, "p")
	d, _ := s.Seal(nil, []byte("seed"))
	f.Add(d)
	f.Add(d[:HeaderSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		o := NewOpener(kr, "p")
		p, _, _, err := o.Open(nil, b)
		if err == nil && !bytes.Equal(b, d) {
			t.Errorf("forged datagram opened to %q", p)
		}
	})
}

func FuzzKeyring(f *testing.F) {
	f.Add([]byte(fixedKey(1) + "\n#x\n" + fixedKey(2)))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if kr, err := ParseKeyring(b); err == nil && (len(kr.keys) == 0 || len(kr.keys) > MaxKeys) {
			t.Errorf("accepted %d keys", len(kr.keys))
		}
	})
}

func BenchmarkSealOpen(b *testing.B) {
	kr := ring(b, fixedKey(1))
	s, o := NewSealer(kr, "p"), NewOpener(kr, "p")
	plain := make([]byte, 1400)
	d, _ := s.Seal(nil, plain)
	out, _, _, err := o.Open(nil, d)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		d, _ = s.Seal(d[:0], plain)
		if out, _, _, err = o.Open(out[:0], d); err != nil {
			b.Fatal(err)
		}
	}
}

// The hot path does not allocate; a benchmark nobody runs would not tell.
func TestSealOpenDoNotAllocate(t *testing.T) {
	kr := ring(t, fixedKey(1))
	s, o := NewSealer(kr, "p"), NewOpener(kr, "p")
	plain, d, out := make([]byte, 1400), make([]byte, 0, 1500), make([]byte, 0, 1500)
	step := func() {
		d, _ = s.Seal(d[:0], plain)
		var err error
		if out, _, _, err = o.Open(out[:0], d); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("seal and open allocate %v times, want 0", n)
	}
}

func TestSeedLine(t *testing.T) {
	a, b := NewKey(), NewKey()
	for _, c := range []struct{ name, text, want string }{
		{"a seed alone", "seed " + a, "holds no key"},
		{"two seeds", a + "\nseed " + a + "\nseed " + b, "line 3 is a second seed"},
		{"a seed that is no key", a + "\nseed x", "line 2 is not a base64 key"},
	} {
		if _, err := ParseKeyring([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	kr, err := ParseKeyring([]byte(a + "\nseed " + b))
	if err != nil {
		t.Fatal(err)
	}
	sealed, _ := NewSealer(mustRing(t, b), "x").Seal(nil, nil)
	if _, _, _, err := NewOpener(kr, "x").Open(nil, sealed); err != ErrKey {
		t.Errorf("the seed opens: %v", err)
	}
}

// A Sealer that changes its key stays the same boot, and who has both keys
// hears it all the time.
func TestSetKeys(t *testing.T) {
	a, b := NewKey(), NewKey()
	s, o := NewSealer(mustRing(t, a), "x"), NewOpener(mustRing(t, a), "x")
	boot := s.Boot()
	open := func(want error) {
		t.Helper()
		d, _ := s.Seal(nil, []byte("text"))
		p, from, _, err := o.Open(nil, d)
		if err != want || err == nil && (string(p) != "text" || from != boot) {
			t.Errorf("opened %q of %x: %v", p, from, err)
		}
	}
	open(nil)
	o.SetKeys(mustRing(t, a+"\n"+b))
	open(nil)
	s.SetKeys(mustRing(t, b+"\n"+a))
	open(nil)
	o.SetKeys(mustRing(t, b))
	open(nil)
	s.SetKeys(mustRing(t, a))
	open(ErrKey)
}

func mustRing(t *testing.T, text string) *Keyring {
	t.Helper()
	kr, err := ParseKeyring([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return kr
}

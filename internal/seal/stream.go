package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
)

// MaxFrame is the largest plaintext of one frame of a Stream, in bytes.
const MaxFrame = 64 << 10

const helloSize = 4 + 4 + 32

// A Stream is a sealed connection of frames over a byte stream such as TCP.
//
// The client sends a hello (version 1 and three zero bytes, the key id, 32
// random bytes), the server 32 random bytes; each direction has a key derived
// from both, so neither side can be fed an earlier stream. Then frames:
// be32 size of ciphertext and tag, ciphertext, tag; the nonce counts frames.
// The server's first frame is empty and proves that it holds the key.
// One goroutine may read while another writes.
type Stream struct {
	rw       io.ReadWriter
	in, out  half
	inBuf    []byte
	outBuf   []byte
	plainBuf []byte
}

type half struct {
	aead  cipher.AEAD
	nonce [nonceSize]byte
	seq   uint64
}

func (h *half) next() []byte {
	h.seq++
	binary.BigEndian.PutUint64(h.nonce[nonceSize-8:], h.seq)
	return h.nonce[:]
}

// Client opens a Stream as the side that connected. The caller sets deadlines.
func Client(rw io.ReadWriter, kr *Keyring, purpose string) (*Stream, error) {
	k := &kr.keys[0]
	var salt [64]byte
	rand.Read(salt[:32])
	var hello [helloSize]byte
	hello[0] = version
	binary.BigEndian.PutUint32(hello[4:], k.id)
	copy(hello[8:], salt[:32])
	if _, err := rw.Write(hello[:]); err != nil {
		return nil, fmt.Errorf("sealed stream: hello: %w", err)
	}
	if _, err := io.ReadFull(rw, salt[32:]); err != nil {
		return nil, fmt.Errorf("sealed stream: the server closed at hello, as it does for a key it does not have: %w", err)
	}
	s := newStream(rw, k, salt[:], purpose, true)
	switch p, err := s.Read(); {
	case err != nil:
		return nil, fmt.Errorf("sealed stream: the server's first frame: %w", err)
	case len(p) != 0:
		return nil, ErrForged
	}
	return s, nil
}

// Server opens a Stream as the side that accepted. The caller sets deadlines.
// The client has proved that it holds the key once its first frame was read.
func Server(rw io.ReadWriter, kr *Keyring, purpose string) (*Stream, error) {
	var hello [helloSize]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return nil, fmt.Errorf("sealed stream: hello: %w", err)
	}
	if hello[0] != version {
		return nil, ErrVersion
	}
	k := kr.byID(binary.BigEndian.Uint32(hello[4:]))
	if k == nil {
		return nil, ErrKey
	}
	var salt [64]byte
	copy(salt[:32], hello[8:])
	rand.Read(salt[32:])
	if _, err := rw.Write(salt[32:]); err != nil {
		return nil, fmt.Errorf("sealed stream: hello: %w", err)
	}
	s := newStream(rw, k, salt[:], purpose, false)
	return s, s.Write(nil)
}

func newStream(rw io.ReadWriter, k *key, salt []byte, purpose string, client bool) *Stream {
	s := &Stream{rw: rw}
	c2s := newAEAD(derive(k, salt, purpose+" client to server", 32))
	s2c := newAEAD(derive(k, salt, purpose+" server to client", 32))
	if client {
		s.out.aead, s.in.aead = c2s, s2c
	} else {
		s.out.aead, s.in.aead = s2c, c2s
	}
	return s
}

// Write sends p, at most MaxFrame bytes, as one frame.
func (s *Stream) Write(p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("sealed stream: frame of %d bytes is over %d", len(p), MaxFrame)
	}
	b := append(s.outBuf[:0], 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b, uint32(len(p)+tagSize))
	b = s.out.aead.Seal(b, s.out.next(), p, b[:4])
	s.outBuf = b
	_, err := s.rw.Write(b)
	return err
}

// Read returns the next frame's plaintext, valid until the next Read.
func (s *Stream) Read() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(s.rw, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < tagSize || n > MaxFrame+tagSize {
		return nil, ErrForged
	}
	if cap(s.inBuf) < int(n) {
		s.inBuf = make([]byte, n)
	}
	s.inBuf = s.inBuf[:n]
	if _, err := io.ReadFull(s.rw, s.inBuf); err != nil {
		return nil, err
	}
	p, err := s.in.aead.Open(s.plainBuf[:0], s.in.next(), s.inBuf, head[:])
	if err != nil {
		return nil, ErrForged
	}
	s.plainBuf = p
	return p, nil
}

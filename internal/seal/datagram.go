package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// HeaderSize is the size of a sealed datagram's clear header in bytes.
	HeaderSize = 24
	// Overhead is what sealing adds to a message, in bytes.
	Overhead = HeaderSize + tagSize

	version   = 1
	tagSize   = 16
	nonceSize = 12

	// maxSenders bounds the replay windows that an Opener keeps. A cluster
	// has at most 128 nodes; the rest is room for their earlier boots.
	maxSenders = 512
)

// Why a datagram did not open. Each is one counter of the receiver.
var (
	ErrShort   = errors.New("shorter than a sealed datagram")
	ErrVersion = errors.New("unknown seal version")
	ErrKey     = errors.New("sealed with a key that is not in the keyring")
	ErrForged  = errors.New("does not open: forged or damaged")
	ErrReplay  = errors.New("replayed or too old")
	ErrUnknown = errors.New("of a sender that is not known, and too many such came from there")
)

// Boot names one life of one sender: random, new with each Sealer.
type Boot [8]byte

// A Sealer seals one sender's datagrams for one purpose. It is safe for
// concurrent use.
type Sealer struct {
	mu    sync.Mutex
	aead  cipher.AEAD
	head  [HeaderSize]byte
	nonce [nonceSize]byte
	seq   uint64

	purpose string
}

// NewSealer returns a Sealer with a new random boot.
func NewSealer(kr *Keyring, purpose string) *Sealer {
	s := &Sealer{purpose: purpose}
	k := &kr.keys[0]
	s.head[0] = version
	binary.BigEndian.PutUint32(s.head[4:], k.id)
	rand.Read(s.head[8:16])
	s.aead = newAEAD(derive(k, s.head[8:16], purpose, 32))
	return s
}

// SetKeys goes on with the first key of kr, as the same boot: receivers that
// have the key notice nothing.
func (s *Sealer) SetKeys(kr *Keyring) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := &kr.keys[0]
	binary.BigEndian.PutUint32(s.head[4:], k.id)
	s.aead = newAEAD(derive(k, s.head[8:16], s.purpose, 32))
}

// Boot returns the sender's boot, as receivers see it.
func (s *Sealer) Boot() Boot { return Boot(s.head[8:16]) }

// Seal appends the sealed plaintext to dst and returns the result and the
// datagram's sequence number. dst must not overlap plaintext. With capacity
// for Overhead more bytes it does not allocate.
func (s *Sealer) Seal(dst, plaintext []byte) ([]byte, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	binary.BigEndian.PutUint64(s.head[16:], s.seq)
	binary.BigEndian.PutUint64(s.nonce[nonceSize-8:], s.seq)
	dst = append(dst, s.head[:]...)
	return s.aead.Seal(dst, s.nonce[:], plaintext, s.head[:]), s.seq
}

// An Opener opens the datagrams of all senders for one purpose. It is safe
// for concurrent use; calls wait for each other.
type Opener struct {
	mu      sync.Mutex
	kr      *Keyring
	purpose string
	senders map[senderKey]*sender
	unknown limiter
	tick    uint64
	nonce   [nonceSize]byte
}

type senderKey struct {
	id   uint32
	boot Boot
}

type sender struct {
	aead   cipher.AEAD
	window window
	used   uint64
}

// NewOpener returns an Opener for datagrams of one purpose.
func NewOpener(kr *Keyring, purpose string) *Opener {
	return &Opener{kr: kr, purpose: purpose, senders: map[senderKey]*sender{}, unknown: limiter{seed: maphash.MakeSeed()}}
}

// SetKeys opens with the keys of kr from now on, and no longer knows senders by
// keys that are not among them.
func (o *Opener) SetKeys(kr *Keyring) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kr = kr
	for k := range o.senders {
		if kr.byID(k.id) == nil {
			delete(o.senders, k)
		}
	}
}

// Open appends the plaintext of datagram to dst and returns the result with
// the sender's boot and sequence number. Its error is one of this package's
// Err values; then nothing is appended. For known senders, and with capacity
// in dst, it does not allocate.
func (o *Opener) Open(dst, datagram []byte) ([]byte, Boot, uint64, error) {
	return o.OpenFrom(dst, datagram, netip.Addr{})
}

// OpenFrom is Open for datagrams that came from an address. To find out whether
// a sender that is not known is genuine takes a new key, so those of one
// address (or of few that look alike to us) are limited: whoever floods us from
// there, with the id of a key that is read off the wire, delays new senders
// there, and nobody that is known.
func (o *Opener) OpenFrom(dst, datagram []byte, from netip.Addr) ([]byte, Boot, uint64, error) {
	if len(datagram) < Overhead {
		return dst, Boot{}, 0, ErrShort
	}
	if datagram[0] != version || datagram[1]|datagram[2]|datagram[3] != 0 {
		return dst, Boot{}, 0, ErrVersion
	}
	sk := senderKey{binary.BigEndian.Uint32(datagram[4:]), Boot(datagram[8:16])}
	seq := binary.BigEndian.Uint64(datagram[16:])

	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.senders[sk]
	known := s != nil
	if !known {
		k := o.kr.byID(sk.id)
		if k == nil {
			return dst, Boot{}, 0, ErrKey
		}
		if from.IsValid() && !o.unknown.allow(from, time.Now()) {
			return dst, Boot{}, 0, ErrUnknown
		}
		s = newSender(k, sk.boot, o.purpose)
	} else if !s.window.fresh(seq) {
		return dst, Boot{}, 0, ErrReplay
	}
	binary.BigEndian.PutUint64(o.nonce[nonceSize-8:], seq)
	plain, err := s.aead.Open(dst, o.nonce[:], datagram[HeaderSize:], datagram[:HeaderSize])
	if err != nil {
		return dst, Boot{}, 0, ErrForged
	}
	if !s.window.accept(seq) {
		return dst, Boot{}, 0, ErrReplay
	}
	o.tick++
	s.used = o.tick
	if !known {
		o.admit(sk, s)
	}
	return plain, sk.boot, seq, nil
}

// newSender takes boot by value: the caller's copy then stays off the heap.
func newSender(k *key, boot Boot, purpose string) *sender {
	return &sender{aead: newAEAD(derive(k, boot[:], purpose, 32))}
}

// admit remembers a sender whose first datagram opened, in place of the one
// that was silent longest when there are too many.
func (o *Opener) admit(sk senderKey, s *sender) {
	if len(o.senders) >= maxSenders {
		var oldest senderKey
		least := uint64(1<<64 - 1)
		for k, v := range o.senders {
			if v.used < least {
				oldest, least = k, v.used
			}
		}
		delete(o.senders, oldest)
	}
	o.senders[sk] = s
}

func newAEAD(k []byte) cipher.AEAD {
	block, err := aes.NewCipher(k)
	if err != nil {
		panic("seal: " + err.Error()) // only for key sizes that AES has not
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("seal: " + err.Error()) // only for ciphers without 16-byte blocks
	}
	return aead
}

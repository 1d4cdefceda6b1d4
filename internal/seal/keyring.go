package seal

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"saru/internal/config"
)

const (
	// KeySize is the size of a cluster key in bytes.
	KeySize = 32
	// MaxKeys bounds a keyring: rotation needs two.
	MaxKeys = 8
)

type key struct {
	secret [KeySize]byte
	id     uint32
}

// A Keyring is the cluster's keys: the first seals, every one opens. What must
// stay the same while keys rotate comes from the seed, which is the first key
// unless the file has a line for it.
type Keyring struct {
	keys []key
	seed *key
}

// NewKey returns a fresh random key as one line of a key file.
func NewKey() string {
	var b [KeySize]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return base64.StdEncoding.EncodeToString(b[:])
}

// LoadKeyring reads a key file: one base64 key of 32 bytes a line, first the
// one that seals; empty lines and lines that begin with # do not count. One line
// may be the word "seed" and a key: it neither seals nor opens. The file must
// not be readable or writable by others than its owner.
func LoadKeyring(path string) (*Keyring, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, config.Bad("key_file %q: %v; make one with 'saru keygen > %s' under umask 077 and copy it to every node", path, unwrapPath(err), path)
	}
	if !st.Mode().IsRegular() {
		return nil, config.Bad("key_file %q is not a regular file; name the file that 'saru keygen' wrote", path)
	}
	if perm := st.Mode().Perm(); perm&0o177 != 0 {
		return nil, config.Bad("key_file %q has mode %#o, open to more than its owner; run 'chmod 600 %s'", path, perm, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, config.Bad("key_file %q: %v; the daemon must be able to read it", path, unwrapPath(err))
	}
	kr, err := ParseKeyring(b)
	if err != nil {
		return nil, config.Bad("key_file %q: %v", path, err)
	}
	return kr, nil
}

// ParseKeyring parses the contents of a key file; see LoadKeyring. Its errors
// never quote the contents.
func ParseKeyring(b []byte) (*Keyring, error) {
	kr := &Keyring{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, isSeed := strings.CutPrefix(line, "seed ")
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil || len(raw) != KeySize {
			return nil, fmt.Errorf("line %d is not a base64 key of %d bytes; make one with 'saru keygen'", n, KeySize)
		}
		if isSeed {
			if kr.seed != nil {
				return nil, fmt.Errorf("line %d is a second seed; keep one", n)
			}
			k := newKey(raw)
			kr.seed = &k
			continue
		}
		if len(kr.keys) == MaxKeys {
			return nil, fmt.Errorf("more than %d keys; drop old ones", MaxKeys)
		}
		k := newKey(raw)
		if kr.byID(k.id) != nil {
			return nil, fmt.Errorf("line %d repeats a key; drop it", n)
		}
		kr.keys = append(kr.keys, k)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("a line is too long for a key: %w", err)
	}
	if len(kr.keys) == 0 {
		return nil, fmt.Errorf("holds no key; make one with 'saru keygen'")
	}
	return kr, nil
}

func newKey(raw []byte) key {
	var k key
	copy(k.secret[:], raw)
	sum := sha256.Sum256(append([]byte("saru key id v1\x00"), raw...))
	k.id = binary.BigEndian.Uint32(sum[:])
	return k
}

func (kr *Keyring) byID(id uint32) *key {
	for i := range kr.keys {
		if kr.keys[i].id == id {
			return &kr.keys[i]
		}
	}
	return nil
}

// Derive returns one key of size bytes for a purpose from each cluster key,
// first the one that seals. It is for libraries that do their own sealing.
func (kr *Keyring) Derive(purpose string, size int) [][]byte {
	out := make([][]byte, len(kr.keys))
	for i := range kr.keys {
		out[i] = derive(&kr.keys[i], nil, purpose, size)
	}
	return out
}

// DeriveSeed returns size bytes for a purpose from the seed: the same as long as
// the seed is, whatever keys come and go.
func (kr *Keyring) DeriveSeed(purpose string, size int) []byte {
	k := kr.seed
	if k == nil {
		k = &kr.keys[0]
	}
	return derive(k, nil, purpose, size)
}

func derive(k *key, salt []byte, info string, size int) []byte {
	b, err := hkdf.Key(sha256.New, k.secret[:], salt, "saru v1 "+info, size)
	if err != nil {
		panic("seal: hkdf: " + err.Error()) // only for sizes over 8,160 bytes
	}
	return b
}

func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

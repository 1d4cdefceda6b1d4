package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"io"
	"testing"

	"saru/internal/vectors"
)

func vectorKeys(t *testing.T, v *vectors.Vectors) *Keyring {
	t.Helper()
	kr, err := ParseKeyring([]byte(base64.StdEncoding.EncodeToString(v.Bytes("secret"))))
	if err != nil {
		t.Fatal(err)
	}
	return kr
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s is %x, the document says %x", what, got, want)
	}
}

// What docs/protocol.md says of keys, of a datagram and of a stream.
func TestVectors(t *testing.T) {
	v := vectors.Load(t, "../../docs/protocol.md", vectors.Sealed)
	kr := vectorKeys(t, v)
	k := &kr.keys[0]
	equal(t, "the key id", binary.BigEndian.AppendUint32(nil, k.id), v.Bytes("key id"))
	equal(t, "the gossip's key", kr.Derive("gossip", 32)[0], v.Bytes("gossip key"))
	equal(t, "the hash seed", kr.DeriveSeed("hash seed", 4), v.Bytes("hash seed"))

	purpose, boot := v.Text("datagram purpose"), v.Bytes("boot")
	equal(t, "the datagrams' key", derive(k, boot, purpose, 32), v.Bytes("datagram key"))
	s := NewSealer(kr, purpose)
	copy(s.head[8:16], boot)
	s.SetKeys(kr) // of this boot
	datagram, _ := s.Seal(nil, v.Bytes("records"))
	equal(t, "the datagram", datagram, v.Bytes("datagram"))
	plain, from, seq, err := NewOpener(kr, purpose).Open(nil, v.Bytes("datagram"))
	if err != nil || from != Boot(boot) || seq != 1 {
		t.Errorf("the datagram opens as %d of %x: %v", seq, from, err)
	}
	equal(t, "what the datagram says", plain, v.Bytes("records"))

	testStreamVectors(t, v, kr)
}

func testStreamVectors(t *testing.T, v *vectors.Vectors, kr *Keyring) {
	k, purpose := &kr.keys[0], v.Text("stream purpose")
	salt := append(v.Bytes("client's random"), v.Bytes("server's random")...)
	var c2s, s2c bytes.Buffer
	client := newStream(duplex{&s2c, &c2s}, k, salt, purpose, true)
	server := newStream(duplex{&c2s, &s2c}, k, salt, purpose, false)
	if err := server.Write(nil); err != nil {
		t.Fatal(err)
	}
	if err := client.Write(v.Bytes("pull")); err != nil {
		t.Fatal(err)
	}
	equal(t, "the server's frame", s2c.Bytes(), v.Bytes("server's frame"))
	equal(t, "the client's frame", c2s.Bytes(), v.Bytes("client's frame"))
	for name, h := range map[string]half{"client's key": client.out, "server's key": server.out} {
		text := []byte("what both seal")
		want := newAEAD(v.Bytes(name)).Seal(nil, make([]byte, nonceSize), text, nil)
		equal(t, "what the "+name+" seals", h.aead.Seal(nil, make([]byte, nonceSize), text, nil), want)
	}
	testHelloVector(t, v, kr)
}

// The handshake's own random is not ours to choose: the server is asked with the
// document's hello, and the client's hello has another random.
func testHelloVector(t *testing.T, v *vectors.Vectors, kr *Keyring) {
	hello, random, purpose := v.Bytes("hello"), v.Bytes("client's random"), v.Text("stream purpose")
	equal(t, "the hello's random", hello[len(hello)-len(random):], random)
	var told bytes.Buffer
	if _, err := Client(duplex{&bytes.Buffer{}, &told}, kr, purpose); err == nil {
		t.Error("a client that was not answered has a stream")
	}
	equal(t, "the hello's head", told.Bytes()[:8], hello[:8])
	if told.Len() != len(hello) {
		t.Errorf("a hello has %d bytes, the document's %d", told.Len(), len(hello))
	}

	var answer bytes.Buffer
	server, err := Server(duplex{bytes.NewBuffer(hello), &answer}, kr, purpose)
	if err != nil {
		t.Fatal(err)
	}
	salt := append(random, answer.Next(32)...)
	client := newStream(duplex{&answer, &answer}, &kr.keys[0], salt, purpose, true)
	if first, err := client.Read(); err != nil || len(first) != 0 {
		t.Errorf("the server answers with a frame of %x: %v", first, err)
	}
	if answer.Len() > 0 || server == nil {
		t.Errorf("the server's answer has %d bytes more", answer.Len())
	}
}

// A duplex is one end of a connection.
type duplex struct {
	io.Reader
	io.Writer
}

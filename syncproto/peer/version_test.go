package peer

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

// What a node of the version before ours says is understood, and it is
// answered in its own words; one of a later version is answered in ours.
func TestOtherVersions(t *testing.T) {
	for _, c := range []struct {
		name       string
		heartbeat  func(*heartbeat) []byte // of d2
		wantSpoken uint8
	}{
		{"the version before", func(h *heartbeat) []byte {
			b := h.append(nil, conntable.NodeIDOf("d2"))
			return b[:len(b)-16] // it ended behind the name
		}, 1},
		{"the same", func(h *heartbeat) []byte { return h.append(nil, conntable.NodeIDOf("d2")) }, 2},
		{"the next version", func(h *heartbeat) []byte {
			h.version = protocolVersion + 1
			return append(h.append(nil, conntable.NodeIDOf("d2")), "something new"...)
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kr := keys(t, keyA)
				s, got := session(t, kr, "d1", silent{peertest.New(1).Node(1)})
				sealer := seal.NewSealer(kr, purposeDatagram)
				hear := func(b []byte) { d, _ := sealer.Seal(nil, b); s.receive(d, from, true) }
				hear(c.heartbeat(&heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d2", version: protocolVersion}))
				for version := uint8(oldestVersion); version <= protocolVersion+1; version++ {
					r := now(s)
					r.Version.Node = conntable.NodeIDOf("d2")
					var b batch
					clock := b.load([]conntable.Record{r}, min(version, protocolVersion), r.Version.Node, &s.drops)
					h := recordsHead{version: version, sequence: uint64(version), clock: clock}
					message, _ := b.next(h.append(nil, r.Version.Node), 1400)
					hear(message)
				}
				if len(*got) != 2 || s.drops[DropVersion].Load() != 1 {
					t.Errorf("%d records delivered, %d of another version; want 2 and 1", len(*got), s.drops[DropVersion].Load())
				}
				s.Send([]conntable.Record{now(s)})
				if k, ok := s.ring.get(1); !ok || k.message[0] != c.wantSpoken {
					t.Errorf("spoke version %d, want %d", k.message[0], c.wantSpoken)
				}
			})
		})
	}
}

// An old node that appears cannot read what was told before: it is not to ask
// for it. When it is gone the newer version is spoken again.
func TestAnOldNodeAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kr := keys(t, keyA)
		s, _ := session(t, kr, "d1", silent{peertest.New(1).Node(1)})
		s.log = slog.New(slog.DiscardHandler)
		s.Send([]conntable.Record{now(s)})
		sealer := seal.NewSealer(kr, purposeDatagram)
		old := (&heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d2"}).append(nil, conntable.NodeIDOf("d2"))
		d, _ := sealer.Seal(nil, old[:len(old)-16])
		s.receive(d, from, true)
		if s.ring.lowest() != 2 {
			t.Errorf("what it cannot read can still be asked for, from %d on", s.ring.lowest())
		}
		if st := s.Peers(); len(st) != 1 || st[0].Version != 1 {
			t.Errorf("status %+v, want version 1", st)
		}
		time.Sleep(2 * silentAfter)
		s.forgetSilent(time.Now())
		s.Send([]conntable.Record{now(s)})
		if k, _ := s.ring.get(2); k.message[0] != protocolVersion {
			t.Errorf("spoke version %d when it was gone", k.message[0])
		}
	})
}

// silent is a node that nobody hears.
type silent struct{ *peertest.Node }

func (silent) Broadcast([][]byte) error { return nil }

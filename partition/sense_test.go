package partition

import (
	"net/netip"
	"testing"
)

func TestSense(t *testing.T) {
	for text, want := range map[string]Sense{
		"src-port":                            SrcPort,
		"dst-port, src-addr":                  SrcAddr | DstPort,
		"src-addr,dst-addr,src-port,dst-port": SrcAddr | DstAddr | SrcPort | DstPort,
	} {
		got, err := ParseSense(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if back, err := ParseSense(got.String()); err != nil || back != got {
			t.Errorf("%q came back as %v, %v", got, back, err)
		}
	}
	for _, bad := range []string{"", "port", "src-port,", "src-port;dst-port"} {
		if _, err := ParseSense(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if m := (SrcAddr | DstPort).Mirror(); m != DstAddr|SrcPort {
		t.Errorf("mirrored to %v", m)
	}
}

// The mirrored sense puts both directions of a flow into one bucket, where
// one field decides.
func TestMirrorBucket(t *testing.T) {
	client, server := netip.MustParseAddrPort("192.0.2.7:40001"), netip.MustParseAddrPort("198.51.100.1:80")
	for _, s := range []Sense{SrcAddr, DstAddr, SrcPort, DstPort} {
		p := Plan{Buckets: 256, Seed: 7}
		there := p.Bucket(Division{Sense: s}, client, server)
		if back := p.Bucket(Division{Sense: s.Mirror()}, server, client); back != there {
			t.Errorf("%v: %d there, %d back", s, there, back)
		}
	}
}

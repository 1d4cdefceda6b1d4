package e2e

import (
	"slices"
	"testing"

	"saru/test/lab"
)

// On a switch that floods nothing the master hands to the others what is
// theirs. Two of three directors lose their power, the master first, and no
// flow is lost.
func TestForwardModeOutlivesItsDirectors(t *testing.T) {
	s := newSite(t, lab.Topology{
		Name: "forward", Directors: 3, RealServers: 2, Clients: 2, NoFlood: true,
		Services: []lab.Service{{Proto: "tcp", Port: talkPort}},
	}, setup{share: "mode = \"forward\""})
	s.serveEcho(talkPort)
	s.whole()
	k := s.talks()
	for _, c := range s.lab.Clients {
		k.begin(c, 12)
	}
	k.goOn("three directors")
	for i := range 2 {
		st := s.status(s.serving()[0])
		at := slices.IndexFunc(s.lab.Directors, func(d *lab.Director) bool { return d.Name == st.Master })
		if st.Share.Mode != "forward" || at < 0 {
			t.Fatalf("mode %q, master %q", st.Share.Mode, st.Master)
		}
		d := s.lab.Directors[at]
		if st := s.status(d); i == 0 && (st.Filter.Forwarded == 0 || st.Filter.Accepted == 0) {
			t.Errorf("the master handed on %d packets, and took %d", st.Filter.Forwarded, st.Filter.Accepted)
		}
		s.known("all flows", 24*(i+1), func(c lab.Conn) bool { return c.State == "ESTABLISHED" })
		s.powerCut(d)
		k.goOn("after the power cut of " + d.Name)
		for _, c := range s.lab.Clients {
			k.begin(c, 12)
		}
		k.goOn("with new flows")
	}
}

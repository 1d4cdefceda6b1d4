package director

import (
	"bytes"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// Only who has seen a question can answer it: an answer that somebody makes up
// would have a director ignore peers that it must wait for.
func TestOnlyAnswersToPingsCount(t *testing.T) {
	const id = 0x5a5a
	p := &pinger{}
	reply := func(kind icmp.Type, id, seq int, data []byte) []byte {
		b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if p.answers(reply(ipv4.ICMPTypeEchoReply, id, 0, make([]byte, 8)), id) {
		t.Error("an answer counts before anything was asked")
	}
	var asked [4][]byte
	for seq := 1; seq <= 3; seq++ {
		asked[seq] = bytes.Clone(p.ask(uint16(seq)))
	}
	for _, c := range []struct {
		what string
		m    []byte
		want bool
	}{
		{"the newest", reply(ipv4.ICMPTypeEchoReply, id, 3, asked[3]), true},
		{"the one before", reply(ipv4.ICMPTypeEchoReply, id, 2, asked[2]), true},
		{"an older one", reply(ipv4.ICMPTypeEchoReply, id, 1, asked[1]), false},
		{"made up", reply(ipv4.ICMPTypeEchoReply, id, 3, make([]byte, 8)), false},
		{"without its data", reply(ipv4.ICMPTypeEchoReply, id, 3, nil), false},
		{"with another's data", reply(ipv4.ICMPTypeEchoReply, id, 3, asked[2]), false},
		{"to another program", reply(ipv4.ICMPTypeEchoReply, id+1, 3, asked[3]), false},
		{"the question itself", reply(ipv4.ICMPTypeEcho, id, 3, asked[3]), false},
		{"cut short", reply(ipv4.ICMPTypeEchoReply, id, 3, asked[3])[:7], false},
	} {
		if got := p.answers(c.m, id); got != c.want {
			t.Errorf("%s: counts: %v", c.what, got)
		}
	}
}

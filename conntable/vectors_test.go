package conntable

import (
	"testing"
	"time"

	"saru/internal/vectors"
)

// vectorRecord returns the record whose vectors begin with name, as node told it.
func vectorRecord(v *vectors.Vectors, name string, node NodeID) *Record {
	var r Record
	r.Client, r.Virtual = v.AddrPort(name+" client"), v.AddrPort(name+" virtual")
	r.Protocol, r.Template = uint8(v.Number(name+" protocol")), name == "template"
	r.Timeout = time.Duration(v.Number(name+" timeout")) * time.Second
	r.Remaining = r.Timeout
	r.Version = Version{v.Number(name + " clock"), node}
	return &r
}

// What docs/protocol.md says of nodes, of connections' terms and of digests.
func TestVectors(t *testing.T) {
	v := vectors.Load(t, "../docs/protocol.md", vectors.Digests)
	node := NodeIDOf(v.Text("name"))
	if want := v.Hex("node"); uint64(node) != want {
		t.Errorf("node is %08x, the document says %08x", node, want)
	}
	recs := map[string]*Record{}
	for _, name := range []string{"IPv4", "IPv6", "template", "UDP"} {
		r := vectorRecord(v, name, node)
		recs[name] = r
		hash := keyHash(&r.Key)
		if want := v.Hex(name + " hash"); hash != want {
			t.Errorf("the hash of %s is %016x, the document says %016x", name, hash, want)
		}
		if got, want := SliceOf(&r.Key), v.Number(name+" slice"); got != int(want) {
			t.Errorf("the slice of %s is %d, the document says %d", name, got, want)
		}
		tm := termOf(hash, r.Version, r.Timeout)
		sum, enter, leave := v.Hex(name+" term"), v.Number(name+" enter"), v.Number(name+" leave")
		if tm.sum != sum || tm.enter != int64(enter) || tm.leave != int64(leave) {
			t.Errorf("the term of %s is %016x from %d to %d, the document says %016x from %d to %d", name, tm.sum, tm.enter, tm.leave, sum, enter, leave)
		}
	}
	for _, c := range []struct {
		timeout string
		leave   int64
	}{{"UDP without a term", 0}, {"UDP lasting", int64(v.Number("UDP lasting leave"))}, {"UDP without an end", forever}} {
		r := recs["UDP"]
		tm := termOf(keyHash(&r.Key), r.Version, time.Duration(v.Number(c.timeout))*time.Second)
		if tm.leave != c.leave || (tm.sum == 0) != (c.leave == 0) {
			t.Errorf("%s: the term is %+v", c.timeout, tm)
		}
	}

	legacy := NodeIDOf(v.Text("legacy name"))
	if want := v.Hex("legacy node"); uint64(legacy) != want || legacy != LegacyNode {
		t.Errorf("the legacy directors' node is %08x and %08x, the document says %08x", legacy, LegacyNode, want)
	}
	told := Version{recs["IPv4"].Version.Clock, legacy}
	if tm := termOf(1, told, recs["IPv4"].Timeout); tm.enter != int64(v.Number("legacy enter")) {
		t.Errorf("a legacy director's term begins at %d", tm.enter)
	}

	tab := New(10)
	for _, name := range []string{"IPv4", "IPv6"} {
		if o := tab.Apply(recs[name], 0).Outcome; o != Added {
			t.Fatalf("%s: %v", name, o)
		}
	}
	for _, name := range []string{"both", "one", "none"} {
		h, want := v.Number(name+" horizon"), v.Hex(name+" digest")
		if before := digests(t, tab, h-HorizonTick); before.Sum() == want || h%HorizonTick != 0 {
			t.Errorf("%q is not the first horizon of its digest", name)
		}
		if d := digests(t, tab, h); d.Sum() != want {
			t.Errorf("%q: the digest at %d is %016x, the document says %016x", name, h, d.Sum(), want)
		}
	}
	if d := new(Digests); d.Sum() != v.Hex("none digest") {
		t.Errorf("an empty table's digest is %016x", d.Sum())
	}
}

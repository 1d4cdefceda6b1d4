package ownership

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"saru/conntable"
	"saru/partition"
)

var (
	vip   = netip.MustParseAddrPort("10.9.0.100:80")
	other = netip.MustParseAddrPort("10.9.0.101:80")
	plan  = partition.Plan{
		VIPs: partition.Hosts(vip.Addr()), Buckets: 256, Seed: 7,
		Default: partition.Division{Sense: partition.SrcPort},
		Services: []partition.Service{{
			Proto: partition.TCP, VIP: netip.PrefixFrom(vip.Addr(), 32), Port: 443,
			Division: partition.Division{Sense: partition.SrcAddr, Bits4: 24},
		}},
	}
)

func conn(client string, virtual netip.AddrPort, template bool) *conntable.Key {
	return &conntable.Key{Client: netip.MustParseAddrPort(client), Virtual: virtual, Protocol: partition.TCP, Template: template}
}

func bucketOf(t *testing.T, k *conntable.Key) int {
	t.Helper()
	d, err := partition.NewDivider(plan)
	if err != nil {
		t.Fatal(err)
	}
	return d.Decide(&partition.Packet{Src: k.Client.Addr(), Dst: k.Virtual.Addr(), Proto: k.Protocol, SrcPort: k.Client.Port(), DstPort: k.Virtual.Port()}).Bucket
}

// overJSON is t as the other daemon gets it.
func overJSON(t *testing.T, told *Told) *Told {
	t.Helper()
	b, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	var out Told
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestFeed(t *testing.T) {
	k := conn("10.1.2.3:4567", vip, false)
	b := bucketOf(t, k)
	mine, theirs := partition.SetOf(b), partition.FullSet(256)
	theirs.Remove(b)
	var f Feed
	now := time.Unix(1_000_000, 0)
	want := func(what string, k *conntable.Key, whose Whose) {
		t.Helper()
		if got, _ := f.Of(now, k); got != whose {
			t.Errorf("%s: %v, want %v", what, got, whose)
		}
	}
	tell := func(set partition.Set, span time.Duration) {
		t.Helper()
		for end := now.Add(span); now.Before(end); now = now.Add(250 * time.Millisecond) {
			if err := f.Update(now, overJSON(t, NewTold(plan, set))); err != nil {
				t.Fatal(err)
			}
		}
	}
	want("nothing told", k, Unknown)
	came := now
	tell(mine, Settle/2)
	want("just told", k, Unknown)
	tell(mine, Settle)
	want("for a while", k, Here)
	if _, since := f.Of(now, k); !since.Equal(came) {
		t.Errorf("since %v, want %v", since, came)
	}
	want("another address", conn("10.1.2.3:4567", other, false), Unknown)
	want("a template that the ports of its connections would divide", conn("10.1.2.3:0", vip, true), Unknown)
	tell(theirs, Settle/2)
	want("it went", k, Unknown)
	tell(theirs, Settle)
	want("it is gone", k, Elsewhere)
	now = now.Add(Stale + time.Second)
	want("saru is silent", k, Unknown)
	tell(mine, Settle/2)
	want("saru is back", k, Unknown)
	tell(mine, Settle)
	want("saru is back for a while", k, Here)
}

// Of several shares each knows its own connections, and no other's; one that is
// not told of any more knows nothing, and begins anew when it is.
func TestSeveralShares(t *testing.T) {
	second := plan
	second.VIPs, second.Services = partition.Hosts(other.Addr()), nil
	// A client of the second share in the first one's inside network.
	first := plan
	first.Inside = &partition.Inside{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Replies:  []partition.Reply{{Proto: partition.TCP, Port: 80, Division: first.Default}},
	}
	a, b := conn("10.1.2.3:4567", vip, false), conn("10.1.2.3:4567", other, false)
	var f Feed
	now := time.Unix(1_000_000, 0)
	tell := func(span time.Duration, others ...Told) {
		t.Helper()
		told := NewTold(first, partition.FullSet(256))
		told.Others = others
		for end := now.Add(span); now.Before(end); now = now.Add(250 * time.Millisecond) {
			if err := f.Update(now, overJSON(t, told)); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(what string, ofA, ofB Whose, shares int) {
		t.Helper()
		gotA, _ := f.Of(now, a)
		gotB, _ := f.Of(now, b)
		if gotA != ofA || gotB != ofB || f.Shares(now) != shares {
			t.Errorf("%s: %v and %v of %d shares, want %v and %v of %d", what, gotA, gotB, f.Shares(now), ofA, ofB, shares)
		}
	}
	none := *NewTold(second, partition.Set{})
	tell(2*Settle, none)
	want("both are told of", Here, Elsewhere, 2)
	tell(time.Second)
	want("the second does not answer", Here, Unknown, 1)
	tell(Settle/2, none)
	want("the second is back", Here, Unknown, 2)
	tell(Settle, none)
	want("the second is back for a while", Here, Elsewhere, 2)
}

// A template and its client's connections have one owner.
func TestTemplateHasItsConnectionsOwner(t *testing.T) {
	https := netip.AddrPortFrom(vip.Addr(), 443)
	tmpl := conn("10.1.2.0:0", https, true) // under a netmask of 24 bits
	var f Feed
	now := time.Unix(1_000_000, 0)
	for range 40 {
		if err := f.Update(now, NewTold(plan, partition.SetOf(bucketOf(t, tmpl)))); err != nil {
			t.Fatal(err)
		}
		now = now.Add(250 * time.Millisecond)
	}
	for i := range 20 {
		c := conn(fmt.Sprintf("10.1.2.%d:%d", i+1, 5000+i), https, false)
		if got, _ := f.Of(now, c); got != Here {
			t.Errorf("%v: %v", c, got)
		}
	}
	if got, _ := f.Of(now, tmpl); got != Here {
		t.Errorf("the template: %v", got)
	}
}

func TestBadTellings(t *testing.T) {
	for name, told := range map[string]*Told{
		"no plan": {}, "short bitmap": {Plan: plan, Serves: "00"}, "no hex": {Plan: plan, Serves: "zz"},
		"bad plan":        {Plan: partition.Plan{Buckets: 256}, Serves: NewTold(plan, partition.Set{}).Serves},
		"bad other share": {Plan: plan, Serves: NewTold(plan, partition.Set{}).Serves, Others: []Told{{}}},
		"many shares":     {Plan: plan, Serves: NewTold(plan, partition.Set{}).Serves, Others: slices.Repeat([]Told{*NewTold(plan, partition.Set{})}, maxShares)},
	} {
		var f Feed
		if f.Update(time.Unix(1, 0), told) == nil || f.Shares(time.Unix(1, 0)) > 0 {
			t.Errorf("%s was taken", name)
		}
	}
}

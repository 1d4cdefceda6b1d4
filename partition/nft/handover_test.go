package nft_test

import (
	"testing"
	"time"

	"saru/partition/nft"
)

// A director that has a bucket in rest only carries on with its connections
// and opens nothing.
func TestClasses(t *testing.T) {
	cfg := config(time.Minute)
	w := newNetwork(t, 1, cfg)
	w.resolve()
	w.beat(1)
	d := w.directors[0]
	c, err := w.dial(20001, port, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Fatalf("%q, %v", who, err)
	}
	if err := d.filter.Apply(nft.Desired{Rest: d.owns}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if who, err := hear(c, 5*time.Second); who != d.name {
		t.Errorf("the open connection: %q, %v", who, err)
	}
	if got := w.arrived([]uint32{w.send(20001, 64), w.send(20001, 8000)}, 200*time.Millisecond); got[0][0]+got[1][0] != 0 {
		t.Error("UDP accepted")
	}
	if who, err := w.greeting(20002, 300*time.Millisecond); err == nil {
		t.Errorf("a new connection: %q", who)
	}
	if got := w.ping(1); got[0] != 0 {
		t.Error("echo request answered")
	}
	if err := d.filter.Apply(nft.Desired{Open: d.owns}); err == nil {
		t.Error("rest without open was applied")
	}
}

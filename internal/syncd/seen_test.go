package syncd

import (
	"testing"
)

func TestSeenForgetsNothing(t *testing.T) {
	const n = 20000
	s := newSeen(n)
	for i := range n {
		k := tcp(i, 0, 0).Key
		s.add(&k)
	}
	wrong := 0
	for i := range n {
		k, other := tcp(i, 0, 0).Key, tcp(n+i, 0, 0).Key
		if !s.has(&k) {
			t.Fatalf("%v was added", k)
		}
		if s.has(&other) {
			wrong++
		}
	}
	if wrong > n/50 {
		t.Errorf("%d of %d keys that were never added are claimed", wrong, n)
	}
}

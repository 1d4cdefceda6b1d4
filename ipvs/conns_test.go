package ipvs

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// boundaries notes where reads end.
type boundaries struct {
	r    io.Reader
	at   int
	ends map[int]bool
}

func (b *boundaries) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.at += n
	b.ends[b.at] = true
	return n, err
}

// An entry is torn when its line was read in two, and no other.
func TestTornEntries(t *testing.T) {
	const line = "UDP 0A610003 %04X 0A610164 0035 0A610004 0035 UDP             299\n"
	const many = 1000
	var text strings.Builder
	for i := range many {
		fmt.Fprintf(&text, line, i+1)
	}
	length := len(fmt.Sprintf(line, 1))
	in := &boundaries{r: strings.NewReader(text.String()), ends: map[int]bool{}}
	told, torn := 0, 0
	err := (&pacedReader{r: in}).parse(func(e *Entry) error {
		start := (int(e.Client.Port()) - 1) * length
		want := false
		for at := start + 1; at < start+length; at++ {
			want = want || in.ends[at]
		}
		if e.Torn != want {
			t.Errorf("entry %d: torn %t, want %t", e.Client.Port(), e.Torn, want)
		}
		told++
		if e.Torn {
			torn++
		}
		return nil
	})
	if err != nil || told != many || torn < many*length/4096-2 {
		t.Errorf("%d entries, %d torn, %v", told, torn, err)
	}
}

package director

import (
	"strings"
	"testing"
)

// A director that gets fewer bytes than another, in window after window, says
// so; one window, a few headers, hardly any traffic or others' windows are
// nothing.
func TestFloodsAreCompared(t *testing.T) {
	type seen struct {
		own   uint64
		other Flooded
	}
	const much = 100 << 20
	short := func(n int) (all []seen) {
		for i := range n {
			all = append(all, seen{much * 7 / 10, Flooded{int64(i + 1), much}})
		}
		return all
	}
	for name, c := range map[string]struct {
		windows []seen
		says    string
	}{
		"nobody else":          {[]seen{{much, Flooded{}}, {much, Flooded{}}, {much, Flooded{}}}, ""},
		"storm control":        {short(3), "only 70 % of the bytes to the shared MAC that d2 gets"},
		"not yet":              {short(2), ""},
		"over":                 {append(short(3), seen{much, Flooded{4, much}}), ""},
		"merged segments":      {[]seen{{much * 96 / 100, Flooded{1, much}}, {much * 96 / 100, Flooded{2, much}}, {much * 96 / 100, Flooded{3, much}}}, ""},
		"hardly any":           {[]seen{{7, Flooded{1, 1000}}, {7, Flooded{2, 1000}}, {7, Flooded{3, 1000}}}, ""},
		"older windows":        {[]seen{{9, Flooded{0, much}}, {9, Flooded{1, much}}, {9, Flooded{2, much}}}, ""},
		"this one gets more":   {[]seen{{much, Flooded{1, 9}}, {much, Flooded{2, 9}}, {much, Flooded{3, 9}}}, ""},
		"nothing comes at all": {[]seen{{0, Flooded{1, much}}, {0, Flooded{2, much}}, {0, Flooded{3, much}}}, "only 0 %"},
	} {
		var j floodJudge
		says := ""
		for i, w := range c.windows {
			says = j.judge(Flooded{int64(i + 1), w.own}, map[string]Peer{"d2": {Name: "d2", Flooded: w.other}, "d3": {Name: "d3"}})
		}
		if c.says == "" && says != "" || !strings.Contains(says, c.says) {
			t.Errorf("%s: %q, want %q", name, says, c.says)
		}
	}
}

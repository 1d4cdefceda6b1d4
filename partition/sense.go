package partition

import (
	"fmt"
	"strings"
)

// A Sense is the set of packet fields that pick the bucket, seen from the
// client: its own address and port are the source. Replies of real servers
// are judged in the mirrored sense.
type Sense uint8

// The fields, in the order in which they enter the hash.
const (
	SrcAddr Sense = 1 << iota
	DstAddr
	SrcPort
	DstPort
)

var senseNames = []struct {
	sense Sense
	name  string
}{{SrcAddr, "src-addr"}, {DstAddr, "dst-addr"}, {SrcPort, "src-port"}, {DstPort, "dst-port"}}

// ParseSense reads a field or a comma-joined list of fields, in any order.
func ParseSense(text string) (Sense, error) {
	var s Sense
fields:
	for field := range strings.SplitSeq(text, ",") {
		for _, n := range senseNames {
			if strings.TrimSpace(field) == n.name {
				s |= n.sense
				continue fields
			}
		}
		return 0, fmt.Errorf("%q is not a sense: use src-port, src-addr, dst-port, dst-addr or a comma-joined list of them", text)
	}
	return s, nil
}

// Valid reports whether s names at least one field and nothing else.
func (s Sense) Valid() bool { return s != 0 && s&^(SrcAddr|DstAddr|SrcPort|DstPort) == 0 }

// single reports whether s is one field.
func (s Sense) single() bool { return s.Valid() && s&(s-1) == 0 }

// String returns what ParseSense reads.
func (s Sense) String() string {
	var names []string
	for _, n := range senseNames {
		if s&n.sense != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// Mirror returns the sense with source and destination exchanged.
func (s Sense) Mirror() Sense {
	const src, dst = SrcAddr | SrcPort, DstAddr | DstPort
	return s&src<<1 | s&dst>>1
}

// A Method is how the fields of a sense pick the bucket.
type Method uint8

const (
	// ByHash spreads the fields' values evenly: a seeded hash.
	ByHash Method = iota

	// ByBlock cuts the values of one field into equal contiguous blocks: with
	// 256 buckets, source ports 0 to 255 are bucket 0. Of an address the first
	// 32 bits count, so IPv6 clients, all within 2000::/3, fall into an eighth
	// of the buckets.
	ByBlock
)

// ParseMethod reads "hash" or "block".
func ParseMethod(text string) (Method, error) {
	for _, m := range []Method{ByHash, ByBlock} {
		if text == m.String() {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%q is not a method: use hash or block", text)
}

// String returns what ParseMethod reads.
func (m Method) String() string {
	if m == ByBlock {
		return "block"
	}
	return "hash"
}

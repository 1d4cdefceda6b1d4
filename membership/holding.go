package membership

import "saru/partition"

// A Holding is what a director says that it serves.
type Holding struct {
	Name string
	Open partition.Set // buckets of which it may take what opens flows
	Rest partition.Set // and of which it takes the rest
}

// AppendHoldings appends what this node serves, and then what each director
// heard says.
func (c *Core) AppendHoldings(all []Holding) []Holding {
	all = append(all, Holding{c.cfg.Node, c.open, c.rest})
	for _, p := range c.peers {
		if p.director() && p.known {
			all = append(all, Holding{p.hb.Name, p.hb.Open, p.hb.Rest})
		}
	}
	return all
}

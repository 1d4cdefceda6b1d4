package membership

import "time"

// A BucketInfo is what a Core knows of one bucket.
type BucketInfo struct {
	Epoch Epoch    // of the assignment
	Owner string   // whom the assignment gives the bucket, or ""
	Open  []string // who says that it takes what opens flows: one, none while the bucket moves
	Rest  []string // who serves all established flows: two while the bucket moves
}

// Bucket returns what the Core knows at time now of bucket b, from 0 on.
func (c *Core) Bucket(now time.Duration, b int) BucketInfo {
	c.now = now
	var info BucketInfo
	info.Epoch, _ = c.epoch()
	if c.assign != nil && b < len(c.assign.Owner) {
		if i := int(c.assign.Owner[b]); i < len(c.assign.Seats) {
			info.Owner = c.nameOf(c.assign.Seats[i].Node)
		}
	}
	if c.open.Has(b) {
		info.Open = append(info.Open, c.cfg.Node)
	}
	if c.rest.Has(b) {
		info.Rest = append(info.Rest, c.cfg.Node)
	}
	for _, p := range c.peers {
		if !p.heard || !p.known {
			continue
		}
		if p.hb.Open.Has(b) {
			info.Open = append(info.Open, c.nameOf(p.id))
		}
		if p.hb.Rest.Has(b) {
			info.Rest = append(info.Rest, c.nameOf(p.id))
		}
	}
	return info
}

// Package failover measures how soon somebody else serves when a director
// loses power: saru beside keepalived, each pair of directors on a LAN of
// namespaces of its own, all on the same machine in the same minutes.
//
//	client --- switch --- d1
//	              \------ d2
//
// The client sends numbered datagrams to the virtual address all the time. A
// power cut takes the director's link away, then kills its processes. What is
// measured is the time from the cut to the arrival, by the kernel's clock, of
// the first datagram that another director accepts, of those flows that the
// victim had.
//
// What must hold: only one pair is cut at a time; a pair is cut again only when
// it serves as before; a system whose flow two directors accept is reported.
package failover

// Package firstpacket holds the first packet of each TCP connection that IPVS
// forwards back, until it is told to let it go: so that a director's peers can
// know of a connection before its real server does.
//
//	table inet syncd_defer {
//	  chain held {
//	    type filter hook postrouting priority 200;
//	    meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn fib saddr type != local
//	      ip daddr . tcp dport @targets4 queue num N bypass
//	  }
//	}
//
// IPVS has made its entry when a packet comes there. A target is where the
// packet goes: the virtual service for direct routing, the real server for NAT.
// Tunnelled packets are not seen; the director's own (a health check's) are not held.
//
// What must hold: it never costs a connection. Without a reader the rule lets
// packets pass (bypass), and so does a full queue (fail-open). What is queued
// when the reader ends is lost: a SYN, which the client sends again.
package firstpacket

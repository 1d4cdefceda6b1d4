// Package datagrams tells who accepted what: clients send numbered datagrams
// from many ports, directors note which of them their kernel let through, and
// a Ledger has both with the kernel's own times.
//
// What must hold: a datagram that two directors accepted, or one twice, is
// found; times of arrival are those at which the kernel took the packet in, so
// a busy machine does not change them.
package datagrams

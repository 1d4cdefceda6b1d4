// Package multicast opens UDP sockets for a group of nodes on one link, over
// IPv4 or IPv6, that are read and written in batches.
//
// What must hold: a socket hears what is sent to its own address, or to the
// group that it joined itself, on its own interface, and nothing else; what it
// sends to a group leaves by that interface, and goes no further than the link.
package multicast

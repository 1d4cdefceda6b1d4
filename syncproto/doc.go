// Package syncproto is the wire: what connections look like on the way between
// kernels and directors.
//
// Two protocols, each a package of its own, pure codecs apart from their I/O:
//
//   - kernelsync is the kernel's own sync protocol, versions 0 and 1, which
//     the IPVS sync threads speak.
//   - peer is what syncd daemons speak with each other: sealed datagrams with
//     sequence numbers and repair, and a sealed stream for bulk.
package syncproto

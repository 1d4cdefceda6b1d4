// Package kernelsync encodes and decodes the datagrams of the kernel's own
// IPVS connection synchronisation, as its sync threads send and take them
// (net/netfilter/ipvs/ip_vs_sync.c). It is pure: bytes in, connections out.
//
// What must hold: decoding accepts exactly what the kernel's backup thread
// accepts, with one exception (below); every record that is not handed on is
// counted under its reason; no input panics, and no input makes the package
// hold memory; encoding a decoded record and decoding it again gives the same
// connection.
//
// # Version 1
//
// All fields are big-endian. A message is a header and its records:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|  reserved, 0  |    sync ID    |    size of the whole message  |
//	+---------------+---------------+-------------------------------+
//	|    records    |  version, 1   |           spare, 0            |
//	+---------------+---------------+-------------------------------+
//
// The number of records is one byte, and a sender with messages beyond 9,188
// bytes lets it wrap (679 records were seen labelled 167). So this package
// reads records until size is reached. That is the exception: the kernel
// reads as many as the byte says.
//
// A record, IPv4 (36 bytes) or IPv6 (72 bytes: three addresses of 16):
//
//	+---------------+---------------+-------+-----------------------+
//	|type, bit0=IPv6|   protocol    |ver, 0 | length with options   |
//	+---------------+---------------+-------+-----------------------+
//	|                 flags (conntable.Flag...)                     |
//	+-------------------------------+-------------------------------+
//	|             state             |          client port          |
//	+-------------------------------+-------------------------------+
//	|          virtual port         |       real server's port      |
//	+-------------------------------+-------------------------------+
//	|                           fwmark                              |
//	+---------------------------------------------------------------+
//	|              timeout of the state, whole seconds              |
//	+---------------------------------------------------------------+
//	|  client address, virtual address, real server's address       |
//	+---------------------------------------------------------------+
//	|  options: type(8) length(8) data ...                          |
//	+---------------------------------------------------------------+
//
// Records start at multiples of four bytes; zeros fill the gaps between them
// and none follow the last. Options:
//
//	1  SEQ_DATA  24 bytes: init, delta, previous delta; inwards, then outwards
//	2  PE_DATA   1 to 255 bytes, the persistence engine's data
//	3  PE_NAME   1 to 16 bytes without a final zero
//
// Bit 0x40 of an option's type says that a receiver that does not know the
// type may skip it. An unknown option without the bit drops its record. Newer
// versions of a record (ver not 0) end the message.
//
// # Version 0
//
// Taken from messages whose header is not version 1's, and made on request
// (AppendMessage0):
//
//	+---------------+---------------+-------------------------------+
//	|    records    |    sync ID    |    size of the whole message  |
//	+---------------+---------------+-------------------------------+
//
// with records of 24 bytes (reserved, protocol, three ports, three IPv4
// addresses, flags(16), state(16)), followed by 24 bytes of sequence data in
// the sender's own byte order if flags has one of the sequence flags. They
// have no timeout and no fwmark.
package kernelsync

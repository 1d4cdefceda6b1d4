// Package seal authenticates and encrypts everything that the daemons send
// each other.
//
// What must hold: nothing is acted on that did not open with a key of the
// cluster's keyring, nothing opens twice, and a sealed message of one purpose
// (heartbeats, sync datagrams, ...) never opens as another.
//
// A sealed datagram (RFC 5116 AEAD, AES-256-GCM):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|  version = 1  |   zero        |   zero                        |
//	+---------------+---------------+-------------------------------+
//	|                       key id                                  |
//	+---------------------------------------------------------------+
//	|                       boot (8 bytes)                          |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       sequence (8 bytes, from 1)              |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       ciphertext, then the 16-byte tag ...    |
//
// The header is the additional data. Numbers are big-endian. boot is random
// and new each time a Sealer is made; the AES key is HKDF-SHA256 (RFC 5869) of
// the cluster key, with boot as salt and "saru v1 " and the purpose as info, so
// no two Sealers ever share an AES key and the sequence can be the nonce, behind
// four zero bytes.
//
// A keyring opens with every key and seals with the first, so keys can rotate
// without a gap: the new key goes second into every file, then first, then the
// old one goes, or stays as the seed. A Sealer can change its key and stay the
// same boot, so a daemon may read its file anew while it works.
//
// Limits: whoever holds the key file is the cluster; there is no forward
// secrecy. A receiver that restarts has forgotten the replay windows, so a
// protocol on top must bind what it acts on to something fresh of its own
// (saru's heartbeats echo numbers, syncd's records carry versions).
package seal

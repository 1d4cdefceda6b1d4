package peer

import (
	"errors"
	"sync/atomic"

	"saru/internal/seal"
)

// A Drop is a reason for which something received, or to be sent, was
// discarded.
type Drop uint8

// Drops.
const (
	DropShort     Drop = iota // shorter than a sealed datagram
	DropSeal                  // another version of the seal
	DropKey                   // sealed with a key that is not ours
	DropForged                // does not open
	DropReplay                // opened before, or too old to tell
	DropUnknown               // of an unknown sender, where too many such come from
	DropOwn                   // sent by ourselves
	DropNameClash             // another node has our name, or two share one
	DropOldBoot               // from an earlier life of its sender
	DropVersion               // another version of the protocol
	DropType                  // unknown type of message
	DropMalformed             // a message's fields are wrong
	DropGroups                // records that cannot be read
	DropDuplicate             // records that came before
	DropLate                  // a record whose version is older than its timeout
	DropPeers                 // a node more than we keep
	DropGone                  // asked for records that are no longer kept
	DropFlood                 // asked for more at once than we resend
	DropUnsayable             // a connection that the protocol cannot say
	DropSend                  // the system refused to send
	DropStream                // a stream that was refused or broke
	dropCount
)

var dropNames = [dropCount]string{
	"short", "seal_version", "unknown_key", "forged", "replayed", "too_many_unknown", "own", "name_clash", "old_boot", "version", "type",
	"malformed", "bad_records", "duplicate", "late", "too_many_peers", "no_longer_kept", "flood", "unsayable", "send", "stream",
}

func (d Drop) String() string { return dropNames[d] }

type drops [dropCount]atomic.Uint64

func (d *drops) count(why Drop) { d[why].Add(1) }

func sealDrop(err error) Drop {
	switch {
	case errors.Is(err, seal.ErrShort):
		return DropShort
	case errors.Is(err, seal.ErrVersion):
		return DropSeal
	case errors.Is(err, seal.ErrKey):
		return DropKey
	case errors.Is(err, seal.ErrReplay):
		return DropReplay
	case errors.Is(err, seal.ErrUnknown):
		return DropUnknown
	}
	return DropForged
}

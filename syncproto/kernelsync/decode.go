package kernelsync

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"saru/conntable"
)

// Errors of a whole message: none of its records, or none from some record on,
// was handed on.
var (
	ErrShort   = errors.New("kernelsync: message shorter than its header")
	ErrSize    = errors.New("kernelsync: size field is not the message's size")
	ErrSyncID  = errors.New("kernelsync: foreign sync ID")
	ErrRecord  = errors.New("kernelsync: malformed record; the rest of the message is dropped")
	ErrVersion = errors.New("kernelsync: record of a newer version; the rest of the message is dropped")
	ErrType    = errors.New("kernelsync: record of an unknown address family; the rest of the message is dropped")
	ErrOption  = errors.New("kernelsync: malformed option; the rest of the message is dropped")
)

// Counts says what became of the messages decoded so far.
type Counts struct {
	Messages uint64 // given to Decode
	Records  uint64 // handed on
	// Messages dropped, wholly or from some record on.
	Short, Size, SyncID, Record, Version, Type, Option uint64
	// Records dropped alone.
	UnknownOption uint64 // an unknown option without the optional bit
	Protocol      uint64 // a protocol that IPVS does not balance
	State         uint64 // a state that the protocol does not have
	OnePacket     uint64 // one-packet scheduling is never mirrored
	Template      uint64 // a template without a known client port
	PE            uint64 // persistence data without an engine's name
	// Messages whose count of records was not what they held; taken anyway.
	Miscounted uint64
}

func (c *Counts) message(err error) error {
	switch err {
	case ErrShort:
		c.Short++
	case ErrSize:
		c.Size++
	case ErrSyncID:
		c.SyncID++
	case ErrRecord:
		c.Record++
	case ErrVersion:
		c.Version++
	case ErrType:
		c.Type++
	case ErrOption:
		c.Option++
	}
	return err
}

// A Decoder decodes messages. The zero value accepts every sync ID. It is not
// safe for concurrent use.
type Decoder struct {
	// SyncID is the only one accepted; 0 accepts all, as the kernel does.
	SyncID uint8
	Counts Counts

	conn conntable.Connection
}

// Decode calls fn with each connection that msg, the payload of one UDP
// datagram, tells of. The connection is valid during the call only; its Seq may
// be kept, its PEData as long as msg. Decode returns one of the Err values if it
// dropped the message or the rest of it; records dropped alone are only counted.
func (d *Decoder) Decode(msg []byte, fn func(*conntable.Connection)) error {
	d.Counts.Messages++
	if len(msg) < headerSizeV0 {
		return d.Counts.message(ErrShort)
	}
	if int(binary.BigEndian.Uint16(msg[2:])) != len(msg) {
		return d.Counts.message(ErrSize)
	}
	if d.SyncID != 0 && msg[1] != d.SyncID {
		return d.Counts.message(ErrSyncID)
	}
	if len(msg) >= HeaderSize && msg[0] == 0 && msg[5] == version1 && msg[6] == 0 && msg[7] == 0 {
		return d.Counts.message(d.version1(msg, fn))
	}
	return d.Counts.message(d.version0(msg, fn))
}

func (d *Decoder) version1(msg []byte, fn func(*conntable.Connection)) error {
	n := 0
	for at := HeaderSize; at < len(msg); n++ {
		rec := msg[at:]
		if len(rec) < RecordSize4 {
			return ErrRecord
		}
		verLen := binary.BigEndian.Uint16(rec[offVerLen:])
		length := int(verLen & lenMask)
		if length > len(rec) {
			return ErrRecord
		}
		if verLen>>verShift != 0 {
			return ErrVersion
		}
		ok, err := d.record(rec[:length])
		if err != nil {
			return err
		}
		if ok {
			d.Counts.Records++
			fn(&d.conn)
		}
		at += round4(length)
	}
	if uint8(n) != msg[4] {
		d.Counts.Miscounted++
	}
	return nil
}

// record decodes rec into d.conn. It returns false if the record alone is
// dropped, an error if the rest of the message is.
func (d *Decoder) record(rec []byte) (bool, error) {
	if len(rec) < RecordSize4 {
		return false, ErrRecord
	}
	size := RecordSize4
	switch {
	case rec[offType]&typeIPv6 != 0:
		size = RecordSize6
	case rec[offType] != 0:
		return false, ErrType
	}
	if len(rec) < size {
		return false, ErrRecord
	}
	c := &d.conn
	*c = conntable.Connection{
		State:   binary.BigEndian.Uint16(rec[offState:]),
		Flags:   binary.BigEndian.Uint32(rec[offFlags:]),
		FWMark:  binary.BigEndian.Uint32(rec[offFWMark:]),
		Timeout: time.Duration(binary.BigEndian.Uint32(rec[offTimeout:])) * time.Second,
	}
	c.Protocol = rec[offProto]
	c.Template = c.Flags&conntable.FlagTemplate != 0
	c.Client = addrPort(rec, size, 0, offCPort)
	c.Virtual = addrPort(rec, size, 1, offVPort)
	c.Dest = addrPort(rec, size, 2, offDPort)
	ok, err := d.options(rec[size:])
	if !ok || err != nil {
		return false, err
	}
	return d.legal(), nil
}

func addrPort(rec []byte, size, which, offPort int) netip.AddrPort {
	port := binary.BigEndian.Uint16(rec[offPort:])
	if size == RecordSize6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(rec[offAddrs+16*which:])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(rec[offAddrs+4*which:])), port)
}

func (d *Decoder) options(opts []byte) (bool, error) {
	const pe = 1 << optPEData
	var seen uint
	for len(opts) > 0 {
		if len(opts) < 2 {
			return false, ErrOption
		}
		kind, n := opts[0], int(opts[1])
		if n == 0 || 2+n > len(opts) {
			return false, ErrOption
		}
		data := opts[2 : 2+n]
		opts = opts[2+n:]
		known := kind &^ optOptional
		switch known {
		case optSeqData, optPEData, optPEName:
			if seen&(1<<known) != 0 {
				return false, ErrOption
			}
			seen |= 1 << known
		}
		switch known {
		case optSeqData:
			if n != seqDataSize {
				return false, ErrOption
			}
			d.sequence(data, binary.BigEndian)
		case optPEData:
			d.conn.PEData = data
		case optPEName:
			if n > maxPEName {
				return false, ErrOption
			}
			d.conn.PEName = string(data)
		default:
			if kind&optOptional == 0 {
				d.Counts.UnknownOption++
				return false, nil
			}
		}
	}
	if seen&pe != 0 && d.conn.PEName == "" {
		d.Counts.PE++
		return false, nil
	}
	return true, nil
}

func (d *Decoder) sequence(data []byte, order binary.ByteOrder) {
	word := func(i int) uint32 { return order.Uint32(data[4*i:]) }
	d.conn.Seq = &conntable.SeqPair{
		In:  conntable.Seq{Init: word(0), Delta: word(1), Prev: word(2)},
		Out: conntable.Seq{Init: word(3), Delta: word(4), Prev: word(5)},
	}
}

// legal says whether the kernel would take d.conn (ip_vs_proc_sync_conn,
// ip_vs_conn_fill_param_sync).
func (d *Decoder) legal() bool {
	c := &d.conn
	if c.Flags&conntable.FlagOnePacket != 0 {
		d.Counts.OnePacket++
		return false
	}
	if c.Template {
		if c.Flags&conntable.FlagNoCPort != 0 {
			d.Counts.Template++
			return false
		}
		if c.State >= templateStates {
			d.Counts.State++
			return false
		}
		return true
	}
	n := states(c.Protocol)
	if n == 0 {
		d.Counts.Protocol++
		return false
	}
	if c.State >= n {
		d.Counts.State++
		return false
	}
	return true
}

func (d *Decoder) version0(msg []byte, fn func(*conntable.Connection)) error {
	at := headerSizeV0
	for range msg[0] {
		rec := msg[at:]
		if len(rec) < recordSizeV0 {
			return ErrRecord
		}
		flags := uint32(binary.BigEndian.Uint16(rec[20:]))
		d.conn = conntable.Connection{State: binary.BigEndian.Uint16(rec[22:]), Flags: flags}
		c := &d.conn
		c.Protocol = rec[1]
		c.Template = flags&conntable.FlagTemplate != 0
		c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rec[8:])), binary.BigEndian.Uint16(rec[2:]))
		c.Virtual = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rec[12:])), binary.BigEndian.Uint16(rec[4:]))
		c.Dest = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rec[16:])), binary.BigEndian.Uint16(rec[6:]))
		at += recordSizeV0
		if flags&conntable.FlagSeqMask != 0 {
			if len(msg) < at+seqDataSize {
				return ErrRecord
			}
			d.sequence(msg[at:], binary.NativeEndian)
			at += seqDataSize
		}
		if d.legal() {
			d.Counts.Records++
			fn(c)
		}
	}
	return nil
}

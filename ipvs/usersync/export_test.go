package usersync

import "golang.org/x/sys/unix"

// Send sends any request and returns its error, for tests of the module's
// checks.
func (c *Client) Send(flags uint16, cmd uint8, attrs []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sock.send(c.family.id, unix.NLM_F_ACK|flags, cmd, attrs); err != nil {
		return err
	}
	return c.sock.answers(func([]byte) error { return nil })
}

// ChangeAttrs is the request of Create for one change.
func ChangeAttrs(ch *Change) []byte {
	return nested(nil, attrConn, func(b []byte) []byte {
		return appendExpect(appendState(appendDest(appendKey(b, ch.Connection), ch.Dest), ch), ch)
	})
}

// AppendRaw appends an attribute to attrs.
func AppendRaw(attrs []byte, kind int, value ...byte) []byte {
	return appendAttr(attrs, kind, value...)
}

// AppendNested puts more into the nest that is all of attrs.
func AppendNested(attrs, more []byte) []byte {
	attrs = append(attrs, more...)
	native.PutUint16(attrs, uint16(len(attrs)))
	return attrs
}

// BeginDump asks for a dump and reads one answer of many.
func (c *Client) BeginDump(filter Filter) error {
	if err := c.dump.send(c.family.id, unix.NLM_F_DUMP, cmdGet, filter.attrs()); err != nil {
		return err
	}
	_, err := c.dump.receive()
	return err
}

// EndDump reads what BeginDump left, and returns how many entries that were.
func (c *Client) EndDump() (n int, err error) {
	err = c.dump.answers(func([]byte) error { n++; return nil })
	return n, err
}

package guest

import (
	"bytes"
	"fmt"
)

// File types of a cpio entry's mode, as in stat(2).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

// archive builds a cpio archive in the "newc" format that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf   bytes.Buffer
	inode int
}

func (a *archive) dir(name string) { a.entry(name, modeDir|0o755, 0, 0, nil) }

func (a *archive) file(name string, perm int, data []byte) {
	a.entry(name, modeFile|perm, 0, 0, data)
}

func (a *archive) charDevice(name string, major, minor int) {
	a.entry(name, modeChar|0o600, major, minor, nil)
}

func (a *archive) entry(name string, mode, major, minor int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// finish ends the archive and returns its bytes.
func (a *archive) finish() []byte {
	a.inode = -1
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.buf.Bytes()
}

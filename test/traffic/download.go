package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A File is something to download, with what must arrive.
type File struct {
	Path   string // in the URL, begins with /
	Size   int64
	SHA256 string // hexadecimal
}

// MakeFiles writes n files of size bytes, each with its own pseudo-random
// contents, below dir.
func MakeFiles(dir string, n int, size int64) ([]File, error) {
	var files []File
	for i := range n {
		f := File{Path: fmt.Sprintf("/file%d", i), Size: size}
		h := sha256.New()
		if err := writeFile(filepath.Join(dir, f.Path), h, size, byte(i)); err != nil {
			return nil, err
		}
		f.SHA256 = hex.EncodeToString(h.Sum(nil))
		files = append(files, f)
	}
	return files, nil
}

func writeFile(path string, h io.Writer, size int64, seed byte) error {
	w, err := os.Create(path)
	if err != nil {
		return err
	}
	defer w.Close()
	src := rand.NewChaCha8([32]byte{seed})
	if _, err := io.CopyN(io.MultiWriter(w, h), src, size); err != nil {
		return err
	}
	return w.Close()
}

// Downloader downloads one file after another from one server, each over a
// connection of its own.
type Downloader struct {
	Log     *Log
	ID      int
	To      string        // address and port
	Files   []File        // taken in turn, from ID on
	Silence time.Duration // no byte for so long loses the flow
}

// Run downloads until stop is closed, and finishes a download of which more
// than half is there; it ends at once, without a loss, when ctx ends. A lost
// download is followed by the next one.
func (d *Downloader) Run(ctx context.Context, stop <-chan struct{}) {
	for n := d.ID; ctx.Err() == nil; n++ {
		select {
		case <-stop:
			return
		default:
		}
		if !d.one(ctx, stop, d.Files[n%len(d.Files)]) {
			wait(ctx, stop, time.Second)
		}
	}
}

// one reports whether a connection was made.
func (d *Downloader) one(ctx context.Context, stop <-chan struct{}, file File) bool {
	c, err := dial(ctx, d.To, d.Silence)
	if err != nil {
		return false
	}
	defer abort(c)
	defer closeOn(ctx, c)()
	f := d.Log.open(&Flow{Kind: Download, ID: d.ID, Local: c.LocalAddr().String()})
	err = d.fetch(f, c, file, stop)
	if errors.Is(err, errAbandoned) {
		f.Abandoned, err = true, nil
	}
	if ctx.Err() != nil {
		err = nil
	}
	d.Log.end(f, err)
	return true
}

// errAbandoned ends a download that began too late to be waited for.
var errAbandoned = errors.New("abandoned")

type deadlineConn interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

func (d *Downloader) fetch(f *Flow, c deadlineConn, file File, stop <-chan struct{}) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n", file.Path); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(d.Silence)); err != nil {
		return err
	}
	br := bufio.NewReaderSize(c, 8<<10)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != file.Size {
		return fmt.Errorf("%w: status %s, length %d", errWrongBytes, resp.Status, resp.ContentLength)
	}
	h := sha256.New()
	buf := make([]byte, 8<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(d.Silence)); err != nil {
			return err
		}
		n, err := resp.Body.Read(buf)
		h.Write(buf[:n])
		if n > 0 {
			d.Log.got(f, int64(n), false)
		}
		if err == io.EOF {
			break
		}
		select {
		case <-stop:
			if f.Bytes < file.Size/2 {
				return errAbandoned
			}
		default:
		}
		if err != nil {
			return err
		}
	}
	if f.Bytes != file.Size || hex.EncodeToString(h.Sum(nil)) != file.SHA256 {
		return fmt.Errorf("%w: checksum of %s", errWrongBytes, file.Path)
	}
	return nil
}

func wait(ctx context.Context, stop <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	case <-ctx.Done():
	}
}

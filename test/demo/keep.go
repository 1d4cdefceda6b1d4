package demo

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Keep copies what a failed run left in dir to out, but for what was served
// and the key. What cannot be copied is left out.
func Keep(dir, out string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(dir, path)
		switch {
		case err != nil || rerr != nil:
			return nil
		case d.IsDir() && rel == "www":
			return filepath.SkipDir
		case d.IsDir():
			os.MkdirAll(filepath.Join(out, rel), 0o755)
		case d.Type().IsRegular() && !strings.HasSuffix(rel, ".key"):
			if b, err := os.ReadFile(path); err == nil {
				os.WriteFile(filepath.Join(out, rel), b, 0o644)
			}
		}
		return nil
	})
}

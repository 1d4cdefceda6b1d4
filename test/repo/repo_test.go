// Package repo holds the repository's own rules, as tests.
package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// goFiles calls f with every Go file's path below the repository's top.
func goFiles(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "out"):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go"):
			f(filepath.ToSlash(strings.TrimPrefix(path, root+"/")))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, path string, mode parser.Mode) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	goFiles(t, func(path string) {
		dir := filepath.Dir(path)
		if strings.HasSuffix(path, "_test.go") && dir != "test/repo" {
			return
		}
		f := parse(t, path, parser.PackageClauseOnly|parser.ParseComments)
		documented[dir] = documented[dir] || f.Doc != nil
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// layers says what each part may import of this module (a name, or all below
// it with a slash): imports point one way, and the domain packages do not know
// each other except by subject.
var layers = map[string][]string{
	"internal/config":  {},
	"internal/control": {"internal/config", "internal/web"},
	"internal/logs":    {"internal/config"},
	"internal/packet":  {},
	"internal/seal":    {"internal/config"},
	"internal/task":    {},
	"internal/web":     {},
	"conntable":        {"internal/"},
	"syncproto":        {"internal/", "conntable", "syncproto/"},
	"ipvs":             {"internal/", "conntable", "syncproto/"},
	"membership":       {"internal/", "membership/", "partition"}, // bucket sets are what is claimed
	"partition":        {"internal/", "partition/", "partition"},
}

func TestImportsPointOneWay(t *testing.T) {
	goFiles(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		allowed, ok := layerOf(path)
		if !ok {
			return
		}
		for _, imp := range parse(t, path, parser.ImportsOnly).Imports {
			name, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), "saru/")
			if ours && !permitted(name, allowed) {
				t.Errorf("%s imports %s, which is not below it", path, name)
			}
		}
	})
}

func layerOf(path string) ([]string, bool) {
	for prefix, allowed := range layers {
		if strings.HasPrefix(path, prefix+"/") {
			return allowed, true
		}
	}
	return nil, false
}

func permitted(name string, allowed []string) bool {
	for _, a := range allowed {
		if name == a || strings.HasSuffix(a, "/") && strings.HasPrefix(name, a) {
			return true
		}
	}
	return false
}

// Only programs end the process; a library returns its errors.
func TestNoExitOutsideMain(t *testing.T) {
	goFiles(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		f := parse(t, path, 0)
		if f.Name.Name == "main" {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "os" && sel.Sel.Name == "Exit" || x.Name == "log" && strings.HasPrefix(sel.Sel.Name, "Fatal")) {
				t.Errorf("%s ends the process with %s.%s", path, x.Name, sel.Sel.Name)
			}
			return true
		})
	})
}

// A rule of ours that wrote the packet's mark would reach IPVS's fwmark
// services.
func TestNoRuleWritesTheMark(t *testing.T) {
	goFiles(t, func(path string) {
		if !strings.HasPrefix(path, "partition/") {
			return
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		f := parse(t, path, 0)
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			text := string(b[lit.Pos()-1 : lit.End()-1])
			if strings.HasPrefix(strings.TrimPrefix(text, "&"), "expr.Meta{") && strings.Contains(text, "MetaKeyMARK") && strings.Contains(text, "SourceRegister: true") {
				t.Errorf("%s writes the packet's mark: %s", path, text)
			}
			return true
		})
	})
}

package guest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// bootModules are what init needs before it can mount the machine's file
// system and open the channel; all others are loaded from that file system.
var bootModules = []string{"virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay"}

// module is one module file of the initramfs.
type module struct {
	name string
	data []byte // an uncompressed .ko
}

// moduleOrder returns the files, relative to the modules' folder, that must be
// loaded for the wanted modules, each after what it depends on. dep is the
// text of modules.dep (modules.dep(5)). A module that is not in dep is built
// into the kernel when builtin says so, an error otherwise.
func moduleOrder(dep, builtin []byte, wanted []string) ([]string, error) {
	needs := map[string][]string{}
	byName := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(dep))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, deps, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		needs[file] = strings.Fields(deps)
		byName[moduleName(file)] = file
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.dep: %w", err)
	}
	inKernel := map[string]bool{}
	for _, f := range strings.Fields(string(builtin)) {
		inKernel[moduleName(f)] = true
	}

	var order []string
	seen := map[string]bool{}
	var add func(file string)
	add = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		for _, d := range needs[file] {
			add(d)
		}
		order = append(order, file)
	}
	for _, name := range wanted {
		file, ok := byName[moduleName(name)]
		switch {
		case ok:
			add(file)
		case !inKernel[moduleName(name)]:
			return nil, fmt.Errorf("kernel has no module %s", name)
		}
	}
	return order, nil
}

// moduleName is the name that the kernel gives to the module in file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadModules reads the boot modules of a kernel, in the order of loading.
func loadModules(ctx context.Context, dir string) ([]module, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	order, err := moduleOrder(dep, builtin, bootModules)
	if err != nil {
		return nil, err
	}
	modules := make([]module, 0, len(order))
	for _, file := range order {
		data, err := readModule(ctx, filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		modules = append(modules, module{moduleName(file), data})
	}
	return modules, nil
}

// readModule returns a module's object file. The guest's kernel is given
// uncompressed ones, since not every kernel can unpack them itself.
func readModule(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	data, err := exec.CommandContext(ctx, "xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", file, err)
	}
	return data, nil
}

// initramfs builds the archive that the kernel starts from: init and the
// modules that it loads, numbered in the order of loading.
func initramfs(init []byte, modules []module) []byte {
	var a archive
	for _, d := range []string{"dev", "proc", "sys", "modules", "root"} {
		a.dir(d)
	}
	a.charDevice("dev/console", 5, 1)
	a.charDevice("dev/null", 1, 3)
	a.file("init", 0o755, init)
	for i, m := range modules {
		a.file(fmt.Sprintf("modules/%02d-%s.ko", i, m.name), 0o644, m.data)
	}
	return a.finish()
}

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A kernel is named by its series; Debian's package of that series depends on
// the newest image.
var kernelPackages = map[string]string{
	"6.1":  "linux-image-amd64",
	"6.12": "linux-image-6.12-amd64",
}

// debugSuffix is that of a kernel with the checks that no package has, which
// test/lab/debug-kernel.sh builds from the series' source.
const debugSuffix = "-debug"

// Kernels lists the kernel series that Fetch knows.
func Kernels() []string { return []string{"6.1", "6.12"} }

// Image is an unpacked kernel package.
type Image struct {
	Release string // as uname -r says
	Kernel  string // path of the compressed kernel
	Modules string // path of the folder with modules.dep
}

// CacheDir is where kernels are kept: $SARU_LAB_CACHE, else .cache/lab at the
// root of the Go module around the working directory, else in the user's cache.
func CacheDir() (string, error) {
	if dir := os.Getenv("SARU_LAB_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if root, err := moduleRoot(); err == nil {
		return filepath.Join(root, ".cache", "lab"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder, set SARU_LAB_CACHE: %w", err)
	}
	return filepath.Join(dir, "saru-lab"), nil
}

// moduleRoot is the folder with go.mod at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod at or above the working directory")
		}
		dir = up
	}
}

// Fetch returns the newest kernel of a series ("6.1", "6.12") from the cache,
// after downloading it as a package when it is not there; "6.12-debug" must
// have been built. It is safe to call from several processes at once; an
// interrupted download leaves nothing that looks complete.
func Fetch(ctx context.Context, series string) (Image, error) {
	plain, debug := strings.CutSuffix(series, debugSuffix)
	meta, ok := kernelPackages[plain]
	if !ok {
		return Image{}, fmt.Errorf("kernel %q: unknown, choose one of %s", series, strings.Join(Kernels(), ", "))
	}
	if runtime.GOARCH != "amd64" {
		return Image{}, fmt.Errorf("kernel %s: the lab runs on amd64 only, this is %s", series, runtime.GOARCH)
	}
	cache, err := CacheDir()
	if err != nil {
		return Image{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Image{}, fmt.Errorf("cache folder: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cache, "lock-"+series))
	if err != nil {
		return Image{}, err
	}
	defer unlock()

	dir := filepath.Join(cache, "linux-"+series)
	img, err := openImage(dir)
	if err == nil {
		return img, nil
	}
	if debug {
		return Image{}, fmt.Errorf("kernel %s: build it with test/lab/debug-kernel.sh %s: %w", series, plain, err)
	}
	if err := fetchInto(ctx, meta, cache, dir); err != nil {
		return Image{}, fmt.Errorf("fetch kernel %s: %w", series, err)
	}
	return openImage(dir)
}

// openImage finds the kernel in an unpacked package.
func openImage(dir string) (Image, error) {
	kernels, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return Image{}, err
	}
	if len(kernels) != 1 {
		return Image{}, fmt.Errorf("%s holds %d kernels, want one", dir, len(kernels))
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	img := Image{release, kernels[0], filepath.Join(dir, "lib", "modules", release)}
	if _, err := os.Stat(filepath.Join(img.Modules, "modules.dep")); err != nil {
		return Image{}, err
	}
	return img, nil
}

// fetchInto downloads what the meta package depends on and unpacks it as dir.
func fetchInto(ctx context.Context, meta, cache, dir string) error {
	if err := Install(ctx, "depmod", "xz"); err != nil {
		return err
	}
	pkg, err := imagePackage(ctx, meta)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// Without the option apt warns that its own user cannot write here.
	if err := command(ctx, tmp, "apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages (%v)", pkg, len(debs), err)
	}
	root := filepath.Join(tmp, "root")
	if err := command(ctx, tmp, "dpkg", "-x", debs[0], root); err != nil {
		return err
	}
	// The package makes modules.dep when it is installed; here nothing is.
	release := strings.TrimPrefix(pkg, "linux-image-")
	if err := command(ctx, tmp, "depmod", "-b", root, release); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(root, dir)
}

// imagePackage resolves a meta package to the image that it depends on.
func imagePackage(ctx context.Context, meta string) (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if err := command(ctx, "", "apt-get", "-q", "update"); err != nil {
				return "", err
			}
		}
		// A missing package is an error of apt-cache and cured by the update.
		out, _ := exec.CommandContext(ctx, "apt-cache", "depends", "--important", meta).Output()
		for line := range strings.Lines(string(out)) {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			if ok && strings.HasPrefix(name, "linux-image-") {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("package %s: not known to apt, add a Debian 12 source with it", meta)
}

// toolPackages names the Debian package of each program that the lab may need.
var toolPackages = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"depmod":             "kmod",
	"modprobe":           "kmod",
	"xz":                 "xz-utils",
	"ip":                 "iproute2",
	"tc":                 "iproute2",
	"bridge":             "iproute2",
	"ipvsadm":            "ipvsadm",
	"nft":                "nftables",
	"nginx":              "nginx-light",
	"wrk":                "wrk",
	"curl":               "curl",
	"ping":               "iputils-ping",
	"tcpdump":            "tcpdump",
	"busybox":            "busybox-static",
}

// Install makes sure that the programs are there, with apt-get when not.
func Install(ctx context.Context, programs ...string) error {
	var missing []string
	for _, p := range programs {
		if hasProgram(p) {
			continue
		}
		pkg, ok := toolPackages[p]
		if !ok {
			return fmt.Errorf("program %s: not installed, and the lab knows no package for it", p)
		}
		if !slices.Contains(missing, pkg) {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	install := append([]string{"-q", "-y", "--no-install-recommends", "install"}, missing...)
	if command(ctx, "", "apt-get", install...) == nil {
		return nil
	}
	if err := command(ctx, "", "apt-get", "-q", "update"); err != nil {
		return err
	}
	return command(ctx, "", "apt-get", install...)
}

// hasProgram also looks where an unprivileged PATH does not.
func hasProgram(name string) bool {
	if _, err := exec.LookPath(name); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// command runs a program for its effect; its output is part of the error.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(out, 5))
	}
	return nil
}

// lastLines returns the end of a text, for an error message.
func lastLines(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lockFile takes an exclusive lock that ends with the process.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

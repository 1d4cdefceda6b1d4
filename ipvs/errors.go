package ipvs

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrNotSupported is in the chain of errors that mean that the kernel lacks
// IPVS, or a part of it.
var ErrNotSupported = errors.New("not supported by this kernel")

// named adds what was tried and, where the bare errno would mislead, what it
// means here (net/netfilter/ipvs/ip_vs_ctl.c).
func named(what string, err error, means map[unix.Errno]string) error {
	if err == nil {
		return nil
	}
	for errno, text := range means {
		if errors.Is(err, errno) {
			return fmt.Errorf("%s: %s: %w", what, text, err)
		}
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: needs CAP_NET_ADMIN: %w", what, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w: %w", what, ErrNotSupported, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

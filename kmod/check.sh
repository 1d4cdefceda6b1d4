#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# check.sh [SERIES...] - builds the module against the headers of Debian's
# kernels, warnings being errors, with sparse if it is there. The modules are
# left as .cache/kmod/SERIES/ip_vs_user_sync.ko.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SARU_KMOD_CACHE:-$(cd "$here/.." && pwd)/.cache/kmod}
sparse=
if command -v sparse >/dev/null; then
	sparse="C=2 CF=-Wsparse-error"
fi
for series in ${*:-6.1 6.12}; do
	kdir=$("$here/headers.sh" "$series")
	build=$cache/$series
	mkdir -p "$build"
	cp "$here"/*.c "$here"/*.h "$here/Kbuild" "$build/"
	# shellcheck disable=SC2086
	make -C "$kdir" M="$build" W=1 KCFLAGS=-Werror $sparse \
		CONFIG_DEBUG_INFO_BTF_MODULES= modules
	strip --strip-debug "$build/ip_vs_user_sync.ko"
	echo "$build/ip_vs_user_sync.ko: $(modinfo -F vermagic "$build/ip_vs_user_sync.ko")"
done

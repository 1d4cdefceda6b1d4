#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# check.sh [SERIES...] - builds the module against the headers of Debian's
# kernels (6.1, 6.12) or of the lab's debug kernels of them (6.12-debug),
# warnings being errors, with sparse if it is there. The modules are
# left as .cache/kmod/SERIES/ip_vs_user_sync.ko. The kernel's checkpatch.pl looks
# at the style if $CHECKPATCH names it, or a kernel's source is unpacked below
# /usr/src; so does its schema at the netlink specification.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SARU_KMOD_CACHE:-$(cd "$here/.." && pwd)/.cache/kmod}
sparse=
if command -v sparse >/dev/null; then
	sparse="C=2 CF=-Wsparse-error"
fi
checkpatch=${CHECKPATCH:-$(ls /usr/src/linux-source-*/scripts/checkpatch.pl 2>/dev/null | tail -n 1)}
if [ -n "$checkpatch" ]; then
	# compat.h is there to compare versions.
	perl "$checkpatch" --no-tree --terse --strict --no-summary \
		--ignore LINUX_VERSION_CODE,CONSTANT_COMPARISON -f "$here"/*.c "$here"/*.h
	schema=$(dirname "$checkpatch")/../Documentation/netlink/genetlink.yaml
	if [ -e "$schema" ] && /usr/bin/python3 -c 'import jsonschema, yaml' 2>/dev/null; then
		/usr/bin/python3 -c 'import jsonschema, sys, yaml
jsonschema.validate(*(yaml.safe_load(open(f)) for f in sys.argv[1:]))' "$here/ipvs_sync.yaml" "$schema"
	fi
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

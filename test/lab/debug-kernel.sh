#!/bin/sh
# debug-kernel.sh SERIES - builds the lab's kernel SERIES-debug (6.1-debug,
# 6.12-debug) from Debian's source of that series, with the checks of
# debug.config: KASAN, lockdep, kmemleak, object debugging, full preemption.
# Afterwards "lab run --kernel 6.12-debug" boots it and "kmod/check.sh
# 6.12-debug" builds the module for it. It takes 20 to 60 minutes on two
# processors ($JOBS; all there are unless given) and 4 GB below .cache/lab, goes
# on where it was interrupted, and does nothing when all is built.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SARU_LAB_CACHE:-$(cd "$here/../.." && pwd)/.cache/lab}
series=${1:?give a kernel series, 6.1 or 6.12}
jobs=${JOBS:-$(nproc)}
build=$cache/build-$series-debug
src=$build/linux-source-$series
root=$cache/linux-$series-debug

"$here/../install.sh" gcc make flex bison bc xz-utils libelf-dev kmod

if [ ! -e "$src/.unpacked" ]; then
	mkdir -p "$build"
	if ! ls "$build"/*.deb >/dev/null 2>&1; then
		apt-cache show "linux-source-$series" >/dev/null 2>&1 || apt-get update -q >&2
		(cd "$build" && apt-get -o APT::Sandbox::User=root -q download "linux-source-$series" >&2)
	fi
	dpkg --fsys-tarfile "$build"/linux-source-*.deb |
		tar -xO --wildcards "./usr/src/linux-source-$series.tar.xz" | tar -xJ -C "$build"
	: >"$src/.unpacked"
fi
cd "$src"
if [ ! -e .config ] || [ "$here/debug.config" -nt .config ]; then
	KCONFIG_ALLCONFIG=$here/debug.config make -s allnoconfig >/dev/null
	grep -E '^CONFIG_[A-Z0-9_]+=' "$here/debug.config" | while read -r line; do
		grep -qx "$line" .config || echo "debug-kernel.sh: $line: this kernel has no such choice" >&2
	done
fi
make -s -j"$jobs" bzImage modules >&2
release=$(make -s kernelrelease)
image=$root/boot/vmlinuz-$release
if [ ! -e "$image" ] || [ "$image" -ot arch/x86/boot/bzImage ]; then
	rm -rf "$root.new"
	mkdir -p "$root.new/boot"
	make -s INSTALL_MOD_PATH="$root.new" modules_install >&2
	cp arch/x86/boot/bzImage "$root.new/boot/vmlinuz-$release"
	rm -rf "$root"
	mv "$root.new" "$root"
fi
echo "$release $root"

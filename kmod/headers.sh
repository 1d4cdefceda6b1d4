#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# headers.sh SERIES - prints a KDIR for the newest Debian kernel of a series
# (6.1, 6.12), after unpacking its headers below .cache, without installing; or
# for the lab's debug kernel of one (6.1-debug, 6.12-debug).
set -eu

series=$1
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${SARU_KMOD_CACHE:-$root/.cache/kmod}
case $series in
6.1) meta=linux-headers-amd64 ;;
6.12) meta=linux-headers-6.12-amd64 ;;
6.1-debug | 6.12-debug)
	kdir=${SARU_LAB_CACHE:-$root/.cache/lab}/build-$series/linux-source-${series%-debug}
	if [ ! -e "$kdir/Module.symvers" ]; then
		echo "headers.sh: kernel $series: build it with test/lab/debug-kernel.sh ${series%-debug}" >&2
		exit 2
	fi
	echo "$kdir"
	exit
	;;
*)
	echo "headers.sh: kernel series $series: unknown, give 6.1, 6.12, 6.1-debug or 6.12-debug" >&2
	exit 2
	;;
esac

# A fresh machine has no package lists.
apt-cache show "$meta" >/dev/null 2>&1 || apt-get update -q >&2

# depends PACKAGE PREFIX - the first package that it depends on with a prefix
depends() {
	apt-cache depends --important "$1" | sed -n "s/^ *Depends: \($2.*\)/\1/p" | head -n 1
}

headers=$(depends "$meta" linux-headers-)
dir=$cache/headers-$series
kdir=$dir/usr/src/$headers
if [ ! -e "$kdir/.unpacked" ]; then
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	chmod 755 "$tmp"
	(
		cd "$tmp"
		apt-get -o APT::Sandbox::User=root -q download "$headers" \
			"$(depends "$headers" 'linux-headers-.*-common')" \
			"$(depends "$headers" linux-kbuild-)"
	) >&2
	rm -rf "$dir"
	mkdir -p "$dir"
	for deb in "$tmp"/*.deb; do
		dpkg -x "$deb" "$dir"
	done
	# They name the place where they would be installed.
	sed -i "s|/usr/src/|$dir/usr/src/|" "$kdir/Makefile"
	: >"$kdir/.unpacked"
fi
echo "$kdir"

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# deb-test.sh [SERIES...] - builds the Debian package and installs it with dpkg
# in a copy of this machine that vanishes afterwards (an overlay in a mount
# namespace), where the headers of Debian's kernels are. What DKMS made is left
# as .cache/kmod/SERIES/dkms/ip_vs_user_sync.ko, for a guest to load, and the
# removal of the package must leave nothing. Needs root, dkms, gcc and make.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${SARU_KMOD_CACHE:-$(cd "$here/.." && pwd)/.cache/kmod}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

deb=$("$here/deb.sh" "$tmp/deb" 2>/dev/null)
for series in ${*:-6.1 6.12}; do
	kdir=$("$here/headers.sh" "$series")
	release=${kdir##*/linux-headers-}
	mkdir -p "$tmp/made/$release"
	echo "$release $kdir $series" >>"$tmp/kernels"
done

cat >"$tmp/inside" <<'EOF'
set -eu
tmp=$1 deb=$2
mkdir "$tmp/cow"
mount -t tmpfs tmpfs "$tmp/cow"
mkdir "$tmp/cow/upper" "$tmp/cow/work" "$tmp/cow/root"
root=$tmp/cow/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$tmp/cow/upper,workdir=$tmp/cow/work" "$root"
for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
mount --bind "$tmp/made" "$root/mnt"
rm -rf "$root/lib/modules"
while read -r release kdir _; do
	mkdir -p "$root/lib/modules/$release"
	ln -s "$kdir" "$root/lib/modules/$release/build"
done <"$tmp/kernels"
cp "$deb" "$root/mnt/package.deb"
chroot "$root" dpkg --install /mnt/package.deb
chroot "$root" dkms status
while read -r release _ _; do
	cp "$root/lib/modules/$release/updates/dkms/ip_vs_user_sync.ko"* "$root/mnt/$release/"
done <"$tmp/kernels"
chroot "$root" dpkg --purge ip-vs-user-sync-dkms
left=$(find "$root/lib/modules" "$root/usr/src" "$root/var/lib/dkms" -name '*user*sync*')
[ -z "$left" ] || { echo "the package left $left" >&2; exit 1; }
EOF
unshare --mount --propagation private sh "$tmp/inside" "$tmp" "$deb"

while read -r release _ series; do
	dir=$cache/$series/dkms
	mkdir -p "$dir"
	cp "$tmp/made/$release"/* "$dir/"
	[ ! -e "$dir/ip_vs_user_sync.ko.xz" ] || xz -df "$dir/ip_vs_user_sync.ko.xz"
	# Without the signature, whose lines begin with tabs.
	modinfo "$dir/ip_vs_user_sync.ko" | grep -vE '^(sig|srcversion|name|retpoline|	)'
done <"$tmp/kernels"

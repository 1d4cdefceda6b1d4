#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# deb.sh [DIR] - builds the Debian package ip-vs-user-sync-dkms into DIR
# (default: out) and prints its path. The same source makes the same bytes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../out}
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' "$here/dkms.conf")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"

src=$tmp/usr/src/ip-vs-user-sync-$version
doc=$tmp/usr/share/doc/ip-vs-user-sync-dkms
mkdir -p "$src" "$doc" "$tmp/DEBIAN"
for f in "$here"/*.c "$here"/*.h "$here/Kbuild" "$here/Makefile" "$here/dkms.conf"; do
	install -m 644 "$f" "$src/"
done
install -m 644 "$here/README.md" "$here/ipvs_sync.yaml" "$here/deb/copyright" "$doc/"
gzip -9n <"$here/deb/changelog" >"$doc/changelog.gz"
chmod 644 "$doc/changelog.gz"
for f in control postinst prerm; do
	sed "s/@VERSION@/$version/g" "$here/deb/$f" >"$tmp/DEBIAN/$f"
done
chmod 755 "$tmp/DEBIAN/postinst" "$tmp/DEBIAN/prerm"
(cd "$tmp" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tmp/DEBIAN/md5sums"

SOURCE_DATE_EPOCH=$(git -C "$here" log -1 --format=%ct -- . 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH
mkdir -p "$out"
out=$(cd "$out" && pwd)
dpkg-deb --root-owner-group -Zxz --build "$tmp" "$out/ip-vs-user-sync-dkms_${version}_all.deb" >&2
echo "$out/ip-vs-user-sync-dkms_${version}_all.deb"

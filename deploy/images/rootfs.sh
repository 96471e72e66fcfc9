#!/usr/bin/env bash
# Writes the root file system of a job image as a tar archive to stdout, made from Debian packages.
#
#   deploy/images/rootfs.sh NAME > root.tar      NAME is a directory beside this file with a list of packages
#
# The packages are only unpacked: no maintainer script runs, so there is no package manager in the image, no
# machine id, no cache, and the few things that scripts would have made are made below, in the open. Owned by
# scripts/images.sh, which hashes this file and the lists: a change here makes new images.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$1

readonly SUITE=bookworm
: "${JOBCELL_DEBIAN_MIRROR:=http://deb.debian.org/debian}"
: "${JOBCELL_DEBIAN_SECURITY_MIRROR:=http://deb.debian.org/debian-security}"
# mmdebstrap clamps every file time to this and sorts the archive: the same packages give the same bytes.
export SOURCE_DATE_EPOCH=1700000000

list() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/$1/packages" | tr -d ' \t'; }
packages=$(list bash)
if [ "$name" != bash ]; then packages+=$'\n'$(list "$name"); fi

# Runs in the host's shell on the unpacked tree "$1", at the end. dpkg's own maintainer scripts would have made
# users, alternatives and links.
finish=$(mktemp)
trap 'rm -f "$finish"' EXIT
cat >"$finish" <<'HOOK'
#!/bin/sh
set -eu
root=$1
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd.new"
grep -v '^root:' "$root/etc/passwd" >>"$root/etc/passwd.new"
mv "$root/etc/passwd.new" "$root/etc/passwd"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
# The alternatives that jobs call by name.
ln -sf mawk "$root/usr/bin/awk"
[ -e "$root/bin/sh" ] || ln -s dash "$root/bin/sh"
if [ -e "$root/usr/bin/python3" ]; then ln -sf python3 "$root/usr/bin/python"; fi
# Mount points of the cell, so that the engine has nothing to create in a read-only root.
mkdir -p "$root/workspace" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/run"
chmod 1777 "$root/tmp"
# A job never runs as root and gains nothing by set-user-id programs; without them there is nothing to try.
find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +
# Nobody reads manuals in a cell, and nobody installs packages (apt's own files are mmdebstrap's to clean).
rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/info" "$root/usr/share/locale" \
  "$root/usr/share/lintian" "$root/usr/share/bug" "$root/usr/share/pixmaps" "$root/usr/share/applications" \
  "$root/var/cache/debconf" "$root/boot" \
  "$root/etc/init.d" "$root/etc/cron.d" "$root/etc/cron.daily" "$root/lib/systemd" "$root/usr/lib/systemd"
# What is inside, one name_version_architecture a line: unpacked packages are not in dpkg's own list.
mkdir -p "$root/usr/share/jobcell"
ls "$root/var/cache/apt/archives" | sed -n 's/\.deb$//p' | sed 's/%3a/:/' | LC_ALL=C sort >"$root/usr/share/jobcell/packages"
[ -s "$root/usr/share/jobcell/packages" ] || echo "no package archives seen by the hook" >&2
rm -rf "$root/var/lib/dpkg"/info "$root/var/lib/dpkg"/*-old
# Translations of characters that no job here asks for: 8 MB of the C library.
find "$root/usr/lib" -path '*/gconv/*.so' ! -name 'UTF-*' ! -name 'ISO8859-1.so' ! -name 'ISO8859-15.so' \
  ! -name 'UNICODE.so' -delete
rm -f "$root"/usr/lib/*/gconv/gconv-modules.cache
# Python's library is compiled here, as a cell's root is read-only and each job would compile it anew. Not checked against the
# source at run time: neither can change.
if [ -x "$root/usr/bin/python3" ]; then
  chroot "$root" /usr/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3*
fi
HOOK
chmod +x "$finish"

# A proxy that apt knows of must hold here too; mmdebstrap does not read the host's apt configuration.
options=()
proxy=$(apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
if [ -n "$proxy" ]; then options+=("--aptopt=Acquire::http::Proxy \"$proxy\""); fi

exec 3>&1
mmdebstrap --quiet --mode=root --variant=extract --architectures=amd64 --format=tar \
  --components=main --include="$(tr '\n' ',' <<<"$packages" | sed 's/,*$//')" \
  --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' ${options[@]+"${options[@]}"} \
  --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --extract-hook="$finish" \
  "$SUITE" - \
  "deb $JOBCELL_DEBIAN_MIRROR $SUITE main" \
  "deb $JOBCELL_DEBIAN_MIRROR $SUITE-updates main" \
  "deb $JOBCELL_DEBIAN_SECURITY_MIRROR $SUITE-security main"

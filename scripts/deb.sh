#!/usr/bin/env bash
# Makes the Debian package, as [package.metadata.deb] of Cargo.toml says, with cargo-deb.
#
#   scripts/deb.sh [--fast] [--binary FILE] [--out DIR]
#   scripts/deb.sh --tool            only sees to cargo-deb
#
# --fast makes a larger one sooner, for tests. Without --binary the program is built for release first. DIR is target/debian unless given; the package's path is printed.
# cargo-deb is taken from PATH or from target/tools, where it is installed if it is not there yet.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

cd "$(project_root)"
binary='' out=target/debian tool_only=no fast=()
while [ $# -gt 0 ]; do
  case "$1" in
    --binary) binary=${2:?--binary needs a file} && shift 2 ;;
    --out) out=${2:?--out needs a folder} && shift 2 ;;
    --fast) fast=(--fast) && shift ;;
    --tool) tool_only=yes && shift ;;
    *) fail $EX_USAGE "unknown option $1; see the head of this script." ;;
  esac
done

find_cargo
have dpkg-deb || fail $EX_UNAVAILABLE "dpkg-deb is not installed: packages are made on Debian and its children."
have python3 || fail $EX_UNAVAILABLE "python3 is not installed: it makes the list of what is in the program. On Debian: apt-get install python3."
have strip || fail $EX_UNAVAILABLE "strip is not installed. On Debian: apt-get install binutils."
PATH=$PWD/target/tools/bin:$PATH
if ! have cargo-deb; then
  say "installing cargo-deb into target/tools"
  cargo install --locked --root target/tools --version '^3' cargo-deb >&2 || fail $EX_UNAVAILABLE "could not install cargo-deb; the reason is above."
fi
if [ "$tool_only" = yes ]; then exit 0; fi

if [ -z "$binary" ]; then
  need_build_tools
  cargo build --release --locked --bin jobcell >&2
  binary=target/release/jobcell
fi

# What the program says of itself goes into the package beside it.
stage=target/deb
rm -rf "$stage"
mkdir -p "$stage/man" "$stage/completions" "$out"
strip --remove-section=.comment --remove-section=.note -o "$stage/jobcell" "$binary"
chmod 755 "$stage/jobcell"
# What it is made of, and whose licences that brings.
scripts/sbom.py "$stage"
# The package's own changelog is not that of the program, which is beside it as changelog.gz.
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
made=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
cat >"$stage/changelog" <<END
jobcell ($version-1) unstable; urgency=medium

  * Version $version; /usr/share/doc/jobcell/changelog.gz says what is in it.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$made")
END
"$stage/jobcell" man --dir "$stage/man"
"$stage/jobcell" completions bash >"$stage/completions/jobcell"
"$stage/jobcell" completions zsh >"$stage/completions/_jobcell"
"$stage/jobcell" completions fish >"$stage/completions/jobcell.fish"

cargo deb --quiet --locked --offline --no-build --no-strip ${fast[@]+"${fast[@]}"} --output "$out"

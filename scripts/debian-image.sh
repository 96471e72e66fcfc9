#!/usr/bin/env bash
# Makes jobcell/debian:1 in the engine that DOCKER_HOST names: a small Debian with dpkg and haproxy, of this host's release, that the
# tests of packages, of the Dockerfile and of the compose files stand on where no registry can be reached. Debian, root.
#
# It carries a label with the hash of this file and the release; one with the right hash is left alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly IMAGE=jobcell/debian:1
readonly RECIPE_LABEL=jobcell.recipe
readonly MAKE_SECONDS=600 IMPORT_SECONDS=180
: "${JOBCELL_DEBIAN_MIRROR:=http://deb.debian.org/debian}"

if ! is_debian || ! is_root; then fail $EX_UNAVAILABLE "$IMAGE is made from Debian packages, as root on Debian."; fi
# shellcheck disable=SC1091
suite=$(. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:-bookworm}")
recipe=$({ echo "$suite"; cat "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-16)

present() {
  local found
  found=$(engine image inspect --format "{{index .Config.Labels \"$RECIPE_LABEL\"}}" "$IMAGE" 2>/dev/null) || return 1
  [ "$found" = "$recipe" ]
}

exec 8>"${TMPDIR:-/tmp}/jobcell-image-debian-$(id -u).lock"
flock -w "$MAKE_SECONDS" 8 || fail $EX_SOFTWARE "another run makes $IMAGE for more than $MAKE_SECONDS s."
if present; then exit 0; fi
if ! have mmdebstrap; then apt_install mmdebstrap || fail $EX_UNAVAILABLE "could not install mmdebstrap; the reason is above."; fi

say "making $IMAGE ($suite)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A proxy that apt knows of must hold here too; mmdebstrap does not read the host's apt configuration.
options=()
proxy=$(apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
if [ -n "$proxy" ]; then options+=("--aptopt=Acquire::http::Proxy \"$proxy\""); fi
if ! bounded "$MAKE_SECONDS" mmdebstrap --quiet --mode=root --variant=minbase --format=tar --components=main \
  --include=adduser,haproxy --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' ${options[@]+"${options[@]}"} \
  "$suite" "$work/root.tar" "deb $JOBCELL_DEBIAN_MIRROR $suite main" >"$work/log" 2>&1; then
  tail -n 30 "$work/log" >&2
  fail $EX_SOFTWARE "could not make the root file system of $IMAGE; the end of its log is above."
fi
bounded "$IMPORT_SECONDS" docker import --change "LABEL $RECIPE_LABEL=$recipe" \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD ["/bin/bash"]' \
  "$work/root.tar" "$IMAGE" >/dev/null
say "$IMAGE is ready ($SECONDS s)"

#!/usr/bin/env bash
# Makes jobcell/systemd:1 in the engine that DOCKER_HOST names: jobcell/debian:1 (scripts/debian-image.sh) with systemd and dbus, for the tests
# that boot it and have a service manager run our units. Debian, root.
#
# It carries a label with the hash of this file and the image below it; one with the right hash is left alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly BASE=jobcell/debian:1 IMAGE=jobcell/systemd:1
readonly RECIPE_LABEL=jobcell.recipe
readonly MAKE_SECONDS=600

"$here/debian-image.sh"
exec 8>"${TMPDIR:-/tmp}/jobcell-image-systemd-$(id -u).lock"
flock -w "$MAKE_SECONDS" 8 || fail $EX_SOFTWARE "another run makes $IMAGE for more than $MAKE_SECONDS s."
base=$(engine image inspect --format '{{.Id}}' "$BASE")
recipe=$({ echo "$base"; cat "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-16)
found=$(engine image inspect --format "{{index .Config.Labels \"$RECIPE_LABEL\"}}" "$IMAGE" 2>/dev/null || true)
if [ "$found" = "$recipe" ]; then exit 0; fi

say "making $IMAGE"
# A proxy that apt knows of must hold in the build too.
proxy=$(apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
packages="apt-get -q -y -o Acquire::Retries=3 -o Acquire::Languages=none${proxy:+ -o Acquire::http::Proxy=$proxy}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Units that set what belongs to the kernel of all, or want terminals, are switched off. The builder is the one that every engine has by itself.
if ! DOCKER_BUILDKIT=0 bounded "$MAKE_SECONDS" docker build --force-rm --network host --label "$RECIPE_LABEL=$recipe" --tag "$IMAGE" - >"$log" 2>&1 <<END; then
FROM $BASE
RUN $packages update \
 && DEBIAN_FRONTEND=noninteractive $packages install --no-install-recommends systemd dbus \
 && $packages clean && rm -rf /var/lib/apt/lists/* \
 && for unit in systemd-sysctl.service systemd-journald-audit.socket systemd-random-seed.service systemd-logind.service \
      console-getty.service getty.target haproxy.service; do ln -sf /dev/null "/etc/systemd/system/\$unit"; done
ENV container=docker
STOPSIGNAL SIGRTMIN+3
CMD ["/lib/systemd/systemd"]
END
  tail -n 30 "$log" >&2
  fail $EX_SOFTWARE "could not make $IMAGE; the end of its log is above."
fi
say "$IMAGE is ready ($SECONDS s)"

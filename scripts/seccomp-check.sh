#!/usr/bin/env bash
# Proves the profiles of seccomp/ from inside a container: seccomp/probe.c tries what must be refused and what must not, and counts how many
# dangerous calls reach the kernel.
#
#   scripts/seccomp-check.sh [PROFILE...]      default, offline, strict, tripwire; none means all
#
# Run twice under each profile: as a job runs, and as root with every capability, so that each refusal is the filter's own. (Both without
# new privileges: otherwise runc puts the filter on before it drops capabilities, which strict refuses. SYS_RESOURCE stays out: not every
# host has it to give, and no try turns on it.) Needs an engine, jobcell/bash:1 and a C compiler with static libc. Leaves nothing behind.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

profiles=("$@")
if [ ${#profiles[@]} -eq 0 ]; then profiles=(default offline strict tripwire); fi
readonly IMAGE=jobcell/bash:1
readonly RUN_SECONDS=120
names=()
work=$(mktemp -d)
cleanup() {
  rm -rf "$work"
  if [ ${#names[@]} -gt 0 ]; then engine rm -f "${names[@]}" >/dev/null 2>&1 || true; fi
}
trap cleanup EXIT

have cc || fail $EX_UNAVAILABLE "no C compiler (cc). On Debian: apt-get install gcc libc6-dev."
cc -static -O1 -Wall -Wextra -Wno-missing-field-initializers -o "$work/probe" "$(project_root)/seccomp/probe.c"

# run_probe PROFILE TITLE DOCKER-OPTION...: copied in before the start, so that it works with a remote engine too.
run_probe() {
  local profile=$1 title=$2 name status=0
  shift 2
  name=jobcell-seccomp-$$-${#names[@]}
  engine create --name "$name" --network none --security-opt "seccomp=$(project_root)/seccomp/$profile.json" "$@" \
    "$IMAGE" /probe "$profile" >/dev/null
  names+=("$name")
  engine cp --quiet "$work/probe" "$name:/probe" 2>/dev/null || engine cp "$work/probe" "$name:/probe" >/dev/null
  bounded "$RUN_SECONDS" docker start --attach "$name" >"$work/out" || status=$?
  grep '^WRONG' "$work/out" >&2 || true
  say "$profile, $title: $(tail -n 1 "$work/out")"
  if [ "$status" -ne 0 ]; then failed=yes; fi
}

failed=no
for profile in "${profiles[@]}"; do
  [ -f "$(project_root)/seccomp/$profile.json" ] || fail $EX_USAGE "there is no profile '$profile' in seccomp/."
  run_probe "$profile" "as a job" --user 20001:20001 --cap-drop ALL --security-opt no-new-privileges
  run_probe "$profile" "as root with all capabilities" --user 0:0 --cap-add ALL --cap-drop SYS_RESOURCE \
    --security-opt no-new-privileges
done
[ "$failed" = no ] || fail $EX_SOFTWARE "a profile does not do what it must; see above."

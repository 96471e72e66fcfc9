#!/usr/bin/env bash
# All tests, those with a real engine included, on the build profile of the demo.
#
#   scripts/test.sh [CARGO-TEST-ARGUMENT...]
#
# JOBCELL_TEST_ENGINE=required (set here) turns a test that finds no engine into a failure instead of a skip.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST
"$here/images.sh"
# For the tests under gVisor. Where it cannot be had they are skipped, loudly, and fail in CI.
if ! have runsc && have apt-get && is_root; then apt_install runsc || say "runsc could not be installed"; fi
# And the registry that images are pulled from.
if ! have docker-registry && have apt-get && is_root; then apt_install docker-registry || say "docker-registry could not be installed"; fi
# And the SSH servers that jobs run on.
if ! [ -x /usr/sbin/sshd ] && have apt-get && is_root; then apt_install openssh-server || say "openssh-server could not be installed"; fi
# And the compose files, the package, and the small Debian that these and the container image are tried on.
if ! have docker-compose && ! docker compose version >/dev/null 2>&1 && have apt-get && is_root; then
  apt_install docker-compose || say "docker-compose could not be installed"
fi
if ! have lintian && have apt-get && is_root; then apt_install lintian || say "lintian could not be installed"; fi
"$here/readers.sh" >/dev/null || say "the readers of scripts/readers.txt could not be had"
"$here/deb.sh" --tool || say "cargo-deb could not be installed"
"$here/debian-image.sh" || say "jobcell/debian could not be made"
"$here/systemd-image.sh" || say "jobcell/systemd could not be made"
cd "$(project_root)"
# And the tool that reads alert rules: out of its package, whose service nobody needs here.
if ! have promtool && have apt-get && have dpkg-deb; then
  tool=$PWD/target/tools/promtool
  [ -x "$tool" ] || get_promtool "$tool" || say "promtool could not be had"
  export JOBCELL_PROMTOOL=$tool
fi
report=$(mktemp)
trap 'print_chaos "$report"; rm -f "$report"' EXIT
# Not the examples in documentation: there are none to run.
JOBCELL_CHAOS_REPORT=$report JOBCELL_TEST_ENGINE=required cargo test --locked --lib --bins --tests "$@"

#!/usr/bin/env bash
# The chaos suite (tests/it/chaos): faults on purpose against real processes and an engine of its own, and a table at the end.
#
#   scripts/chaos.sh [TEST-ARGUMENT...]
#
# JOBCELL_CHAOS_ROUNDS (default 10, as in `make test`) is how often the agent is killed at a moment that nobody has chosen; the other
# faults are repeated in proportion. JOBCELL_CHAOS_SEED repeats the moments of a run that has printed it. Needs root and what `make test`
# needs. The logs of what failed are kept in target/chaos. Also when it is interrupted, its engines are ended and their folders removed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST
"$here/images.sh" bash
cd "$(project_root)"

# Short: the sockets of an engine have to fit below it.
work=$(mktemp -d /tmp/jcc.XXXXXX)
cleanup() {
  local dir
  for dir in "$work"/jce*; do
    if [ -d "$dir" ]; then "$here/private-engine.sh" stop "$dir" || say "$dir stays"; fi
  done
  print_chaos "$work/report"
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
# A signal ends the script, and with it comes the EXIT trap.
trap 'exit 130' INT TERM

export TMPDIR=$work JOBCELL_CHAOS_REPORT=$work/report JOBCELL_TEST_ENGINE=required
cargo test --locked --test it chaos:: -- --nocapture "$@"

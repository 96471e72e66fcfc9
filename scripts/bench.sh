#!/usr/bin/env bash
# All benchmarks, in the release profile, with a real engine and the job images there.
#
#   scripts/bench.sh [CARGO-BENCH-ARGUMENT...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly ASYNCSSH_VERSION=2.24.1

need_build_tools
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST
"$here/images.sh"
cd "$(project_root)"
# Beside OpenSSH's client, the bench of jobs on hosts runs commands by this library.
if [ -z "${JOBCELL_BENCH_PYTHON:-}" ] && have python3; then
  venv=target/asyncssh-$ASYNCSSH_VERSION
  # In a shell of its own: without it the bench goes on.
  if (python_tool "$venv" python "asyncssh==$ASYNCSSH_VERSION") && "$venv/bin/python" -c 'import asyncssh' 2>/dev/null; then
    export JOBCELL_BENCH_PYTHON=$PWD/$venv/bin/python
  else
    rm -rf "$venv"
    say "asyncssh could not be had: its rows are left out"
  fi
fi
cargo bench --locked "$@"

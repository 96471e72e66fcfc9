#!/usr/bin/env bash
# All benchmarks, in the release profile, with a real engine and the job images there.
#
#   scripts/bench.sh [CARGO-BENCH-ARGUMENT...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST
"$here/images.sh"
cd "$(project_root)"
cargo bench --locked "$@"

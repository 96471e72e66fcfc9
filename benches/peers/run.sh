#!/usr/bin/env bash
# jobcell and its peers, measured with the same jobs: builds what is needed, measures, prints the tables of docs/comparison.md.
#
#   benches/peers/run.sh [MEASURE...]     latency, throughput, output, kill, outage, holds; none means all of them
#
# Needs Go, Python 3, an engine that no other jobcell uses and a quiet machine; about 25 minutes behind the builds. A peer that cannot be built is left
# out and named. What the peers leave in the engine is removed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

find_cargo
need_build_tools
have python3 || fail $EX_UNAVAILABLE "python3 is not installed."
cd "$(project_root)"
DOCKER_HOST=$(scripts/engine.sh)
export DOCKER_HOST PYTHONDONTWRITEBYTECODE=1
scripts/images.sh bash
cargo build --release --locked --bin jobcell
benches/peers/build.sh || true # What is missing is said there, and in the report.

measures=("$@")
if [ ${#measures[@]} -eq 0 ]; then measures=(latency throughput output kill outage holds); fi
benches/peers/compare.py "${measures[@]}" report

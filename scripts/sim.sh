#!/usr/bin/env bash
# Runs of the simulated agent (docs/simulation.md), in the release profile.
#
#   SEEDS=1000000 FIRST=0 scripts/sim.sh    so many runs from this seed on
#   SEED=172 scripts/sim.sh                 one run; its trace when it fails
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
cd "$(project_root)"
if [ -n "${SEED:-}" ]; then export JOBCELL_SIM_SEED=$SEED; fi
export JOBCELL_SIM_SEEDS=${SEEDS:-100000} JOBCELL_SIM_FIRST=${FIRST:-0}
# A trace is about the run, not about the stack of the test.
export RUST_BACKTRACE=0
cargo test --locked --release --lib -- agent::simulation::whatever_happens --nocapture

#!/usr/bin/env bash
# Runs the fuzz targets (fuzz/fuzz_targets), each for so long; a target that fails keeps what it failed with in fuzz/artifacts.
#
#   SECONDS_EACH=3600 scripts/fuzz.sh [TARGET...]     default: all, 60 seconds each
#
# Needs the nightly compiler (rustup toolchain install nightly) and cargo-fuzz, which is installed when it is missing. What they find interesting
# is kept in fuzz/corpus. The property tests in `make test` are the short version.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
cd "$(project_root)"
cargo +nightly --version >/dev/null 2>&1 || fail "$EX_UNAVAILABLE" "no nightly compiler. Run: rustup toolchain install nightly"
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
# -s none: this is safe Rust without a line of C of its own; what is looked for are panics, hangs and memory.
for target in "${targets[@]}"; do
  say "$target"
  cargo +nightly fuzz run --sanitizer none "$target" -- -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=1024 -timeout=5 -print_final_stats=1
done

#!/usr/bin/env bash
# Format and lints; every warning is an error. cargo-deny and shellcheck run where they are installed, and a missing one is
# said: they are extra tools, not parts of the toolchain.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need_build_tools
need_rust_component rustfmt fmt
need_rust_component clippy clippy
cd "$(project_root)"
cargo fmt --all --check
cargo clippy --locked --all-targets -- -D warnings
if have cargo-deny; then cargo deny --locked check; else say "cargo-deny is not installed: licences and advisories are not checked"; fi
if have shellcheck; then
  shellcheck -x scripts/*.sh deploy/images/*.sh .ci/run
else
  say "shellcheck is not installed: scripts are not checked"
fi

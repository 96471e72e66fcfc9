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
# The warden and the build script are no modules of the package, so they are looked at by themselves.
rustfmt --check --edition 2024 warden/src/main.rs build.rs
lints=$(mktemp -d "${TMPDIR:-/tmp}/jobcell-lint.XXXXXX")
trap 'rm -rf "$lints"' EXIT
clippy-driver --edition 2024 --crate-name warden --emit=metadata --out-dir "$lints" -D warnings warden/src/main.rs
if have cargo-deny; then cargo deny --locked check; else say "cargo-deny is not installed: licences and advisories are not checked"; fi
if have shellcheck; then
  shellcheck -x scripts/*.sh scripts/vm/*.sh benches/peers/*.sh deploy/images/*.sh deploy/debian/p* .ci/run
else
  say "shellcheck is not installed: scripts are not checked"
fi

#!/usr/bin/env bash
# Holds the crates to deny.toml with cargo-deny, which is built into target/tools first where it is not there: some minutes.
#
#   scripts/deny.sh [CHECK...]     licenses, bans and sources unless given; `all` adds advisories, whose database is fetched from GitHub
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

find_cargo
cd "$(project_root)"
PATH=$PWD/target/tools/bin:$PATH
if ! have cargo-deny; then
  say "installing cargo-deny into target/tools"
  cargo install --locked --root target/tools cargo-deny >&2 || fail $EX_UNAVAILABLE "could not install cargo-deny; the reason is above."
fi
checks=("$@")
if [ ${#checks[@]} -eq 0 ]; then checks=(licenses bans sources); fi
offline=()
case " ${checks[*]} " in *" all "* | *" advisories "*) ;; *) offline=(--offline) ;; esac
cargo deny --locked ${offline[@]+"${offline[@]}"} check "${checks[@]}"

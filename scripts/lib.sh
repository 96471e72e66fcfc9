# shellcheck shell=bash
# Words and small tools that every script here shares. Source it; it does nothing by itself.
#
# Messages go to stderr, so that stdout of a script stays its answer. Exit codes follow sysexits.h where one fits:
# 64 wrong usage, 69 something needed is not there, 70 something that should have worked did not.

# shellcheck disable=SC2034 # Used by the scripts that source this.
readonly EX_USAGE=64 EX_UNAVAILABLE=69 EX_SOFTWARE=70

# How long one answer of a docker client may take, in seconds. An engine that was stopped (SIGSTOP) accepts the
# connection and never answers, so every call needs a bound.
: "${ENGINE_CALL_SECONDS:=20}"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# fail CODE MESSAGE...: one line, then out.
fail() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

have() { command -v "$1" >/dev/null 2>&1; }

# The top of the source tree, whatever the caller's directory is.
project_root() { (cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd); }

# Finds cargo also where rustup put it but the shell's profile was not read (a root shell, a CI runner).
find_cargo() {
  if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
  fi
  have cargo || fail $EX_UNAVAILABLE "cargo is not installed. Install Rust from https://rustup.rs, then run this again."
}

# What a build needs besides cargo: a linker, the C library's headers (bundled SQLite is compiled from C), and the static C
# library (the warden runs in images that have none).
need_build_tools() {
  find_cargo
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    fail $EX_UNAVAILABLE "jobcell is built for x86-64 Linux; this machine is $(uname -s) on $(uname -m)."
  fi
  if ! have cc; then
    fail $EX_UNAVAILABLE "no C compiler (cc). On Debian: apt-get install gcc libc6-dev. On Fedora: dnf install gcc glibc-devel glibc-static."
  fi
  if ! printf '#include <stdlib.h>\nint main(void){return 0;}\n' | cc -x c -fsyntax-only - 2>/dev/null; then
    fail $EX_UNAVAILABLE "the C library's headers are missing. On Debian: apt-get install libc6-dev. On Fedora: dnf install glibc-devel."
  fi
  if ! printf 'int main(void){return 0;}\n' | cc -static -x c -o /dev/null - 2>/dev/null; then
    fail $EX_UNAVAILABLE "the static C library is missing. On Debian: apt-get install libc6-dev. On Fedora: dnf install glibc-static."
  fi
}

# need_rust_component NAME COMMAND: fmt and clippy are separate parts of a toolchain.
need_rust_component() {
  if ! cargo "$2" --version >/dev/null 2>&1; then
    fail $EX_UNAVAILABLE "cargo $2 is not installed. Run: rustup component add $1"
  fi
}

# bounded SECONDS COMMAND...: with a deadline where coreutils gives us one.
bounded() {
  local seconds=$1
  shift
  if have timeout; then timeout -k 5 "$seconds" "$@"; else "$@"; fi
}

# One docker call with the default deadline.
engine() { bounded "$ENGINE_CALL_SECONDS" docker "$@"; }

is_debian() {
  [ -r /etc/os-release ] || return 1
  # ID_LIKE covers Ubuntu and the other children; a subshell keeps os-release's names out of ours.
  # shellcheck disable=SC1091
  (. /etc/os-release && case " ${ID:-} ${ID_LIKE:-} " in *" debian "*) exit 0 ;; *) exit 1 ;; esac)
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# apt_install PACKAGE...: without questions, patient with another apt that runs and with a download that stutters.
apt_install() {
  local try
  local -a apt=(apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
  for try in 1 2 3; do
    # An update that fails for one of several sources still leaves the others fresh; the install decides.
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" update >&2 || true
    if DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$@" >&2; then
      return 0
    fi
    say "apt-get install $* failed (try $try of 3)"
  done
  return 1
}

# skip MESSAGE...: out without a failure, unless everything is required, as in CI.
skip() {
  if [ "${JOBCELL_TEST_ENGINE:-}" = required ]; then fail $EX_UNAVAILABLE "$*"; fi
  say "SKIPPED: $*"
  exit 0
}

# python_tool DIR COMMAND PIP_ARGUMENT...: a venv in DIR with what pip is told to install, made once. What is there stays when
# COMMAND in it answers to --version; name the versions in DIR, so that others get a folder of their own.
python_tool() {
  local dir=$1 command=$2
  shift 2
  if "$dir/bin/$command" --version >/dev/null 2>&1; then return 0; fi
  have python3 || skip "python3 is not installed. On Debian: apt-get install python3 python3-venv."
  rm -rf "$dir"
  python3 -m venv "$dir" >&2 || skip "python3 has no venv. On Debian: apt-get install python3-venv."
  "$dir/bin/pip" install --quiet --disable-pip-version-check "$@" >&2 || skip "$command cannot be had from PyPI."
}

# get_promtool FILE: Prometheus's tool for rules, out of Debian's package of the server.
get_promtool() {
  local work
  work=$(mktemp -d)
  if (cd "$work" && chmod 755 . && apt-get -q -o Acquire::Retries=3 download prometheus >&2 && dpkg-deb -x prometheus_*.deb x); then
    mkdir -p "$(dirname "$1")" && mv "$work/x/usr/bin/promtool" "$1"
  fi
  rm -rf "$work"
  [ -x "$1" ]
}

# A daemon's limit of open files as its unit file would set it, or as near as this machine allows: each container
# costs the engine several descriptors.
raise_open_files() { ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)" 2>/dev/null || true; }

# print_chaos FILE: the table of what the chaos suite has written there, if anything.
print_chaos() {
  [ -s "$1" ] || return 0
  {
    printf '\nfault\trounds\tlost\tdoubled\torphans\tgaps\n'
    cat "$1"
  } | awk -F '\t' 'NF == 6 { printf "%-64s %7s %6s %8s %8s %6s\n", $1, $2, $3, $4, $5, $6 }' >&2
}

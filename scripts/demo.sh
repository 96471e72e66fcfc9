#!/usr/bin/env bash
# One command from a fresh machine to a job in a sealed cell: builds jobcell, makes sure that an engine answers, makes the job
# image, starts `jobcell up`, submits a job, shows its output as it comes, its outcome and its isolation receipt.
#
#   scripts/demo.sh [JOB.yaml]      default: examples/hello.yaml
#
# Exits with 0 when the job succeeded and nothing was left behind. It ends everything that it started but the engine; what
# stays is the job image and the volume with the warden. 69: something needed is missing, and how to get it was said.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly READY_SECONDS=60 # The first start in an engine fills the warden's volume.
readonly JOB_SECONDS=120
readonly STOP_SECONDS=45 # The agent's own drain is 30 s.

root=$(project_root)
job=${1:-$root/examples/hello.yaml}
[ -r "$job" ] || fail $EX_USAGE "cannot read the job file $job."

jobcell=${CARGO_TARGET_DIR:-$root/target}/debug/jobcell
data='' agent=''

step() { printf '\n== %s\n' "$*" >&2; }

agent_runs() { [ -n "$agent" ] && kill -0 "$agent" 2>/dev/null; }

# Asks the agent to end and waits; its exit code is the answer.
stop_agent() {
  local end=$((SECONDS + STOP_SECONDS)) status=0
  kill -TERM "$agent" 2>/dev/null || true
  while agent_runs; do
    if [ "$SECONDS" -ge "$end" ]; then
      say "the agent did not end within $STOP_SECONDS s: killing it"
      kill -KILL "$agent" 2>/dev/null || true
      break
    fi
    sleep 0.1
  done
  wait "$agent" || status=$?
  agent=
  return "$status"
}

cleanup() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ] && [ -s "$data/up.log" ]; then
    say "the end of the agent's own log:"
    tail -n 20 "$data/up.log" >&2
  fi
  if agent_runs; then stop_agent || true; fi
  if [ -n "$data" ]; then rm -rf "$data"; fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# One line in <data-dir>/endpoint says where; /readyz says when.
endpoint() { head -n 1 "$data/endpoint" 2>/dev/null; }
ready() {
  local at
  at=$(endpoint) && [ -n "$at" ] && http_ok "$at/readyz"
}
# Without curl or wget: bash speaks enough HTTP for one status line.
http_ok() {
  local at=${1#http://} line
  local host=${at%%/*}
  (
    exec 3<>"/dev/tcp/${host%:*}/${host##*:}" || exit 1
    printf 'GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "${at#*/}" "$host" >&3
    read -r -t 5 line <&3 && [ "${line#* 200}" != "$line" ]
  ) 2>/dev/null
}

step "build"
need_build_tools
(cd "$root" && cargo build --locked)

step "engine"
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST

step "job image"
"$here/images.sh" bash

step "jobcell up"
data=$(mktemp -d "${TMPDIR:-/tmp}/jobcell-demo.XXXXXX")
"$jobcell" up --data-dir "$data" --listen 127.0.0.1:0 >"$data/up.log" 2>&1 &
agent=$!
end=$((SECONDS + READY_SECONDS))
until ready; do
  agent_runs || fail $EX_SOFTWARE "the agent ended before it was ready."
  [ "$SECONDS" -lt "$end" ] || fail $EX_SOFTWARE "the agent was not ready within $READY_SECONDS s."
  sleep 0.1
done
say "ready at $(endpoint)"

step "one job, its output as it comes"
# The command ends with the job's own exit code.
bounded "$JOB_SECONDS" "$jobcell" --data-dir "$data" job submit "$job" --follow

step "its phases, outcome and isolation receipt"
id=$(bounded 20 "$jobcell" --data-dir "$data" job list -o json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -n 1)
[ -n "$id" ] || fail $EX_SOFTWARE "the list of jobs names no job."
bounded 20 "$jobcell" --data-dir "$data" job get "$id"

step "stop"
stop_agent || fail $EX_SOFTWARE "the agent ended with exit code $?."
left=$(engine ps --all --quiet --filter "label=jobcell.job=$id")
[ -z "$left" ] || fail $EX_SOFTWARE "containers of the job were left behind: $left"
say "done: the job's cell is gone; the job image, the warden's volume and the engine stay"

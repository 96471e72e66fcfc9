#!/usr/bin/env bash
# Makes sure that a Docker engine answers, and prints its address (one line, for DOCKER_HOST) on stdout.
#
#   scripts/engine.sh          use the engine that answers; none does: install and start one (Debian, root)
#   scripts/engine.sh status   only look; exits 69 when none answers
#
# An engine that answers is never touched. One that was chosen (DOCKER_HOST, a docker context) and does not answer is an
# error to report, not a reason to install another. Safe to run twice and at the same time: one lock, and a second look
# under it. What it starts outlives it; nothing here stops an engine.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly DEFAULT_HOST=unix:///var/run/docker.sock
readonly LOCK=/run/lock/jobcell-engine.lock
readonly LOG=/var/log/jobcell-dockerd.log
readonly START_SECONDS=90 # A cold start takes 1-3 s; slow disks and a first loading of kernel modules take the rest.
readonly LOCK_SECONDS=600 # The other run may be downloading packages.
# 1.41 is engine 20.10, the oldest that a supported Debian carries.
readonly API_FLOOR_MINOR=41

why= # The client's own words about the last failed look.

# The address that the docker client would talk to. The agent reads DOCKER_HOST but no client contexts, so a context is
# turned into an address here.
engine_host() {
  if [ -n "${DOCKER_HOST:-}" ]; then
    printf '%s\n' "$DOCKER_HOST"
    return
  fi
  local host=
  if have docker; then
    host=$(bounded 10 docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || host=
  fi
  printf '%s\n' "${host:-$DEFAULT_HOST}"
}

# Does it answer, to this client, in an API version that both speak? Fills $why when not.
answers() {
  local answer
  if ! have docker; then
    why="no docker client is installed"
    return 1
  fi
  # The client's first words are its answer or its complaint; both may come on either stream.
  if ! answer=$(DOCKER_HOST=$(engine_host) engine version --format '{{.Server.Os}} {{.Server.Version}} {{.Server.APIVersion}}' 2>&1); then
    # Warnings about the client's own configuration are not the reason.
    why=$(grep -v -e '^WARNING' -e '^$' <<<"$answer" | head -n 1) || true
    why=${why:-"it did not answer within $ENGINE_CALL_SECONDS s"}
    return 1
  fi
  read -r engine_os engine_version engine_api <<<"$(tail -n 1 <<<"$answer")"
}

check_floor() {
  if [ "${engine_os:-}" != linux ]; then
    fail $EX_UNAVAILABLE "the engine runs ${engine_os:-unknown} containers; jobcell needs a Linux engine."
  fi
  local minor=${engine_api#1.}
  if [ "$minor" -lt "$API_FLOOR_MINOR" ] 2>/dev/null; then
    fail $EX_UNAVAILABLE "engine $engine_version speaks API $engine_api; jobcell needs 1.$API_FLOOR_MINOR (engine 20.10) or newer."
  fi
}

report() {
  check_floor
  say "engine $engine_version (API $engine_api) answers at $(engine_host)"
  engine_host
  exit 0
}

# Said instead of guessing, on every machine where starting an engine is not ours to do.
print_steps() {
  say "no Docker engine answers at $(engine_host): $why"
  case "$why" in
    *"permission denied"*)
      cat >&2 <<STEPS
An engine is there, but this user may not use it. Either run this again as root, or:
  sudo usermod -aG docker $(id -un)     # whoever is in this group is root on this host: decide with care
  newgrp docker                         # or log out and in
STEPS
      return
      ;;
    *"too new"* | *"too old"* | *"API version"*)
      cat >&2 <<STEPS
Client and engine speak no common version. Put a client on PATH that matches the engine, or upgrade the engine.
The client now used is: $(command -v docker)
STEPS
      return
      ;;
  esac
  if [ "$(engine_host)" != "$DEFAULT_HOST" ]; then
    cat >&2 <<STEPS
This address was chosen by DOCKER_HOST or by a docker context, so no other engine is started in its place. Start that engine,
or choose the local one:
  unset DOCKER_HOST DOCKER_CONTEXT; docker context use default
STEPS
    return
  fi
  case "$(uname -s)" in
    Darwin) cat >&2 <<'STEPS' ;;
On macOS install Docker Desktop (https://docs.docker.com/desktop/setup/install/mac-install/) or colima, start it, run this again:
  brew install colima docker && colima start --arch x86_64
The agent and its warden are built for x86-64 Linux: build and run them inside such a machine.
STEPS
    Linux)
      if is_debian; then
        cat >&2 <<'STEPS'
On this machine, as root:
  sudo apt-get update && sudo apt-get install -y docker.io
  sudo systemctl enable --now docker
  sudo usermod -aG docker "$USER" && newgrp docker
or let this script do it: sudo scripts/engine.sh
STEPS
      else
        cat >&2 <<'STEPS'
Install an engine with the system's own packages, start it, run this again:
  Fedora:  sudo dnf install moby-engine && sudo systemctl enable --now docker
  Arch:    sudo pacman -S docker && sudo systemctl enable --now docker
  Alpine:  apk add docker && rc-update add docker && service docker start
  others:  https://docs.docker.com/engine/install/
STEPS
      fi
      ;;
    *) say "see https://docs.docker.com/engine/install/" ;;
  esac
}

has_systemd() { [ -d /run/systemd/system ] && have systemctl; }

install_engine() {
  say "no engine is installed: installing docker.io and iptables from this system's packages"
  local -a packages=(docker.io iptables)
  # Since Debian 13 the client is a package of its own.
  if ! have docker && apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
  apt_install "${packages[@]}" || fail $EX_UNAVAILABLE "could not install ${packages[*]}; the reason is above."
  have dockerd || fail $EX_UNAVAILABLE "docker.io is installed, yet there is no dockerd on PATH."
}

# Machines without an init system (containers, micro-VMs) may come without any cgroup hierarchy.
mount_cgroups() {
  if grep -qE ' - cgroup2? ' /proc/self/mountinfo; then return; fi
  say "no cgroup file system is mounted: mounting cgroup2 at /sys/fs/cgroup"
  mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail $EX_UNAVAILABLE "could not mount cgroup2 at /sys/fs/cgroup."
}

# The nft flavour of iptables needs kernel support that small kernels lack, and the legacy flavour needs its own; dockerd
# calls whichever `iptables` is. Asked here, before dockerd turns it into a page of log. The alternative is
# switched only when the present flavour cannot list the nat table and the other one can.
choose_iptables() {
  if iptables -w 10 -t nat -nL >/dev/null 2>&1; then return; fi
  local other
  for other in /usr/sbin/iptables-legacy /usr/sbin/iptables-nft; do
    if [ -x "$other" ] && "$other" -w 10 -t nat -nL >/dev/null 2>&1; then
      say "this kernel does not serve $(readlink -f "$(command -v iptables)"): switching the system's iptables to $other"
      update-alternatives --set iptables "$other" >&2
      if [ -x "${other/iptables/ip6tables}" ]; then
        update-alternatives --set ip6tables "${other/iptables/ip6tables}" >&2 || true
      fi
      return
    fi
  done
  say "neither flavour of iptables works with this kernel: starting the engine without its bridge network"
  engine_flags+=(--iptables=false --bridge=none)
}

dockerd_runs() {
  local pid
  pid=$(cat /run/docker.pid 2>/dev/null) && [ -d "/proc/$pid" ] && grep -qs dockerd "/proc/$pid/comm"
}

start_engine() {
  if has_systemd; then
    say "starting docker.service"
    log_hint="journalctl -u docker -n 50"
    systemctl enable --now docker.service >&2 || true # Its state is judged by whether it answers.
    return
  fi
  log_hint="tail -n 50 $LOG"
  if dockerd_runs; then
    say "dockerd runs already (pid $(cat /run/docker.pid)): waiting for its answer"
    return
  fi
  mount_cgroups
  local -a engine_flags=()
  choose_iptables
  say "no systemd here: starting dockerd by hand, its log is $LOG"
  # In a session of its own, without our terminal, pipes or lock, so that it outlives this script and whoever called it.
  (
    cd /
    raise_open_files
    setsid nohup dockerd ${engine_flags[@]+"${engine_flags[@]}"} </dev/null >>"$LOG" 2>&1 9>&- &
  )
}

wait_for_engine() {
  local end=$((SECONDS + START_SECONDS))
  until answers; do
    if [ "$SECONDS" -ge "$end" ]; then
      say "the engine did not answer within $START_SECONDS s: $why"
      if [ -r "$LOG" ]; then tail -n 15 "$LOG" >&2; fi
      fail $EX_UNAVAILABLE "more of its log: $log_hint"
    fi
    # Started by hand and gone again: no use in waiting for the rest of the bound.
    if ! has_systemd && [ "$SECONDS" -ge $((end - START_SECONDS + 5)) ] && ! dockerd_runs; then
      if [ -r "$LOG" ]; then tail -n 15 "$LOG" >&2; fi
      fail $EX_UNAVAILABLE "dockerd ended at once; more of its log: $log_hint"
    fi
    sleep 0.2
  done
}

case "${1:-ensure}" in
  ensure | status) ;;
  *) fail $EX_USAGE "usage: scripts/engine.sh [status]" ;;
esac

if answers; then report; fi
if [ "${1:-ensure}" = status ]; then
  fail $EX_UNAVAILABLE "no Docker engine answers at $(engine_host): $why"
fi
if [ "$(engine_host)" != "$DEFAULT_HOST" ] || ! is_debian || ! is_root || [ "$(uname -s)" != Linux ]; then
  print_steps
  exit $EX_UNAVAILABLE
fi
case "$why" in
  # An engine is there and talks; starting another would not help.
  *"too new"* | *"too old"* | *"API version"*)
    print_steps
    exit $EX_UNAVAILABLE
    ;;
esac

mkdir -p "$(dirname "$LOCK")"
exec 9>"$LOCK"
flock -w "$LOCK_SECONDS" 9 || fail $EX_UNAVAILABLE "another run holds $LOCK for more than $LOCK_SECONDS s."
if answers; then report; fi # The run that held the lock made it.
if ! have dockerd || ! have docker; then install_engine; fi
start_engine
wait_for_engine
report

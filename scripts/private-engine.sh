#!/usr/bin/env bash
# A Docker engine of its own for tests that break engines: containerd and dockerd with their own network namespace, state,
# sockets and logs, all under one directory. The engine that the machine uses is never touched.
#
#   scripts/private-engine.sh start DIR [DOCKERD-OPTION...]   DIR must be absent or empty; prints DOCKER_HOST=unix://DIR/docker.sock
#   scripts/private-engine.sh kill9 DIR [DAEMON]              kill -9 of that daemon alone (dockerd, containerd; default dockerd)
#   scripts/private-engine.sh restart DIR [DAEMON]            starts that daemon again (asks it to end first if it runs)
#   scripts/private-engine.sh stop DIR                        ends it and its containers, unmounts, deletes DIR
#
# Process ids: DIR/dockerd.pid and DIR/containerd.pid; logs: DIR/dockerd.log and DIR/containerd.log. Linux, root, and the
# programs of an installed engine (scripts/engine.sh) are needed. Its containers have network `none` or `host` (its own
# namespace with only loopback): there is no bridge. Their control groups are below one named like DIR, so whatever runs in
# one is known by it. JOBCELL_ENGINE_DATA_SIZE=300m at the start puts DIR/data on a tmpfs of that size, which can be filled.
#
# Why a network namespace: a second dockerd with --bridge=none deletes the host's docker0. Why `nsenter --net` and not
# `ip netns exec`: the latter remounts /sys, which hides the cgroup mounts that runc needs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly START_SECONDS=60
readonly END_SECONDS=20
readonly MARK=.jobcell-private-engine # Only a directory with this file is ever emptied.
# A unix socket's path holds 107 bytes; the longest name that we put below DIR needs 20 of them.
readonly DIR_MAX=87

usage() { fail $EX_USAGE "usage: scripts/private-engine.sh start|kill9|restart|stop DIR [DOCKERD-OPTION... | DAEMON]"; }
[ $# -ge 2 ] || usage
verb=$1 dir=$(realpath -m -- "$2")
# Never the name of anything else below /sys/fs/cgroup: what is there is removed.
readonly verb dir group=jobcell-private-${dir##*/}
shift 2

if [ "$(uname -s)" != Linux ] || ! is_root; then fail $EX_UNAVAILABLE "needs root on Linux."; fi
for program in containerd dockerd docker nsenter unshare setsid; do
  have "$program" || fail $EX_UNAVAILABLE "$program is not installed; scripts/engine.sh installs an engine."
done

client() { bounded "$ENGINE_CALL_SECONDS" docker --host "unix://$dir/docker.sock" "$@"; }

# pid_of NAME: the process that the pid file names, if it is still that program and ours. Pids are used again.
pid_of() {
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$dir/" || return 1
  printf '%s\n' "$pid"
}

# A zombie whose parent has not looked yet is gone for our purpose.
alive() { [ -d "/proc/$1" ] && ! grep -qs '^State:.Z' "/proc/$1/status"; }

# until_gone PID SECONDS
until_gone() {
  local end=$((SECONDS + $2))
  while alive "$1"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
}

# end_process NAME: ask, wait, kill. CONT first: a stopped process does not hear TERM.
end_process() {
  local pid
  pid=$(pid_of "$1") || return 0
  kill -CONT "$pid" 2>/dev/null || true
  kill -TERM "$pid" 2>/dev/null || true
  until_gone "$pid" "$END_SECONDS" && return 0
  say "$1 (pid $pid) did not end within $END_SECONDS s: killing it"
  kill -KILL "$pid" 2>/dev/null || true
  until_gone "$pid" "$END_SECONDS" || fail $EX_SOFTWARE "$1 (pid $pid) does not die."
}

# wait_until WHAT LOG COMMAND...
wait_until() {
  local what=$1 log=$2 end=$((SECONDS + START_SECONDS))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then
      tail -n 15 "$log" >&2 || true
      fail $EX_SOFTWARE "$what did not answer within $START_SECONDS s; its log is $log."
    fi
    sleep 0.1
  done
}

# In the private network namespace, in a session of its own, without our terminal and pipes.
daemon() {
  local log=$1
  shift
  (
    cd /
    raise_open_files
    setsid nohup nsenter --net="$dir/net" "$@" </dev/null >>"$log" 2>&1 &
  )
}

start_containerd() {
  cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd-root"
state = "$dir/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/containerd.sock"
TOML
  # The shell writes its pid and becomes the daemon: containerd has no pid file of its own.
  # shellcheck disable=SC2016 # Expanded by the inner shell.
  daemon "$dir/containerd.log" sh -c 'echo $$ >"$1/containerd.pid"; exec containerd --config "$1/containerd.toml"' sh "$dir"
  wait_until containerd "$dir/containerd.log" test -S "$dir/containerd.sock"
}

start_dockerd() {
  local -a options=()
  mapfile -t options <"$dir/dockerd.options"
  # Its own (empty) configuration file: /etc/docker/daemon.json is the machine's.
  daemon "$dir/dockerd.log" dockerd --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
    --pidfile "$dir/dockerd.pid" --host "unix://$dir/docker.sock" --group "$(id -gn)" \
    --containerd "$dir/containerd.sock" --cgroup-parent "/$group" --bridge=none --iptables=false --ip6tables=false \
    ${options[@]+"${options[@]}"}
  wait_until dockerd "$dir/dockerd.log" client version
}

start() {
  [ "${#dir}" -le "$DIR_MAX" ] || fail $EX_USAGE "the path of DIR is longer than $DIR_MAX bytes; its sockets would not fit."
  if [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ]; then fail $EX_USAGE "$dir is not empty."; fi
  mkdir -p "$dir/data" "$dir/exec"
  # Not on success: from here on `stop` knows how to undo whatever there is.
  : >"$dir/$MARK"
  trap 'stop' EXIT
  if [ -n "${JOBCELL_ENGINE_DATA_SIZE:-}" ]; then
    mount -t tmpfs -o "size=$JOBCELL_ENGINE_DATA_SIZE" jobcell-private-engine "$dir/data"
  fi
  printf '{}\n' >"$dir/daemon.json"
  printf '%s\n' "$@" | sed '/^$/d' >"$dir/dockerd.options"
  : >"$dir/net"
  unshare --net="$dir/net" true
  # Some programs expect loopback even where nobody calls.
  if have ip; then nsenter --net="$dir/net" ip link set lo up; fi
  start_containerd
  start_dockerd
  trap - EXIT
  printf 'DOCKER_HOST=unix://%s/docker.sock\n' "$dir"
}

ours() { [ -e "$dir/$MARK" ] || fail $EX_USAGE "$dir was not made by 'private-engine.sh start'."; }

# daemon_named [NAME]: the name, if it is one.
daemon_named() {
  case "${1:-dockerd}" in
    dockerd | containerd) printf '%s\n' "${1:-dockerd}" ;;
    *) usage ;;
  esac
}

kill9() {
  ours
  local name pid
  name=$(daemon_named "$@")
  pid=$(pid_of "$name") || fail $EX_SOFTWARE "the $name of $dir does not run."
  kill -KILL "$pid"
  until_gone "$pid" "$END_SECONDS" || fail $EX_SOFTWARE "$name (pid $pid) does not die."
}

restart() {
  ours
  local name
  name=$(daemon_named "$@")
  end_process "$name"
  # A killed daemon leaves them; the next dockerd would take another process with that number for itself, and a socket that is
  # there would look like a containerd that answers.
  rm -f "$dir/$name.pid"
  if [ "$name" = containerd ]; then rm -f "$dir/containerd.sock"; fi
  "start_$name"
  printf 'DOCKER_HOST=unix://%s/docker.sock\n' "$dir"
}

# Every process below the given ones, themselves included.
descendants() {
  local pid child
  for pid in "$@"; do
    printf '%s\n' "$pid"
    # shellcheck disable=SC2013 # The kernel lists them as words of one line.
    for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do descendants "$child"; done
  done
}

# What outlives its daemons: shims of this containerd (their command line has its address) and the containers below them.
kill_leftovers() {
  local pid
  local -a shims=() all=()
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "-address $dir/containerd.sock"; then shims+=("$pid"); fi
  done
  [ ${#shims[@]} -gt 0 ] || return 0
  # Listed before the first is killed: orphans lose the parent that would name them.
  mapfile -t all < <(descendants "${shims[@]}")
  kill -KILL "${all[@]}" 2>/dev/null || true
  for pid in "${all[@]}"; do until_gone "$pid" "$END_SECONDS" || say "process $pid does not die"; done
}

# Containers that were killed rather than removed leave empty control groups.
remove_cgroups() {
  local path
  for path in /sys/fs/cgroup/*/"$group"/* /sys/fs/cgroup/*/"$group" /sys/fs/cgroup/"$group"/* /sys/fs/cgroup/"$group"; do
    if [ -d "$path" ]; then rmdir "$path" 2>/dev/null || say "control group $path stays"; fi
  done
}

unmount_all() {
  local point
  # Deepest first. mountinfo writes a space as \040; such a DIR is unusual enough to be decoded only.
  while read -r point; do
    umount -l "$(printf '%b' "$point")" 2>/dev/null || say "could not unmount $point"
  done < <(awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
}

stop() {
  trap - EXIT
  [ -e "$dir" ] || return 0 # Stopped before.
  ours
  local containers
  # Removed by the engine while it can: dockerd's own shutdown waits 10 s for each container.
  if pid_of dockerd >/dev/null && containers=$(ENGINE_CALL_SECONDS=5 client ps -aq 2>/dev/null) && [ -n "$containers" ]; then
    # shellcheck disable=SC2086 # One word per container.
    client rm -f $containers >/dev/null 2>&1 || true
  fi
  end_process dockerd
  end_process containerd
  kill_leftovers
  remove_cgroups
  unmount_all
  rm -rf --one-file-system "$dir"
}

case "$verb" in
  start) start "$@" ;;
  kill9) kill9 "$@" ;;
  restart) restart "$@" ;;
  stop) stop ;;
  *) usage ;;
esac

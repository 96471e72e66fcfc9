# shellcheck shell=bash
# Words that the parts of scripts/vm.sh share, in the machine. Each check prints a line; the first that does not hold ends its part.

# Emulated, everything takes its time.
readonly PATIENCE=240

ok() { printf 'ok   %s\n' "$*"; }

bad() {
  printf 'BAD  %s\n' "$*"
  {
    printf '%s\n' "${job:-}" | head -c 6000
    journalctl --no-pager --lines=60 -o short-monotonic
  } 2>&1 | sed 's/^/     | /'
  exit 1
}

# is FOUND WANTED WHAT
is() {
  if [ "$1" != "$2" ]; then bad "$3: found '$1' instead of '$2'"; fi
  ok "$3"
}

# has TEXT PART WHAT
has() {
  case "$1" in
    *"$2"*) ok "$3" ;;
    *) bad "$3: '$2' is not in: $1" ;;
  esac
}

# until_holds COMMAND...: false when it does not hold in time.
until_holds() {
  local end=$((SECONDS + PATIENCE))
  until "$@"; do
    if [ $SECONDS -ge $end ]; then return 1; fi
    sleep 0.3
  done
}

# eventually WHAT COMMAND...
eventually() {
  local what=$1
  shift
  until_holds "$@" || bad "$what: not within $PATIENCE s"
  ok "$what"
}

healthy() { jobcell health >/dev/null 2>&1; }
ready() { until_holds healthy || bad "the service is not ready: $(jobcell health 2>&1)"; }

# submit FILE: its id in $id
# shellcheck disable=SC2034 # For who sources this.
submit() { id=$(jobcell job submit "$1" -o json | jq -re .id) || bad "$1 was not taken in"; }
state() { jobcell job get "$1" -o json | jq -r .phase; }
# Waits for its end.
ended() { until_holds has_ended "$1" || bad "job $1 does not end: $(jobcell job get "$1" -o json)"; }
has_ended() { [ "$(state "$1")" = ended ]; }
says() { [ "$(jobcell job logs "$1" 2>/dev/null)" = "$2" ]; }

# Of $job.
cause() { printf '%s' "$job" | jq -r .ending.cause.code; }
fact() { printf '%s' "$job" | jq -r --arg name "$1" '.receipt[] | select(.[0] == $name) | .[1]'; }

# Jobs over SSH with limits, in the machine: what each kind of login can hold them to, and what becomes of their groups. Run by scripts/vm.sh.
# shellcheck shell=bash
# shellcheck source=scripts/vm/lib.sh
. "$(dirname "$0")/lib.sh"

readonly LOGIN=jobcell-ssh-test GIVEN=lingers-all

# A login and its way in, for the agent.
login() {
  useradd --create-home --shell /bin/bash "$1"
  usermod -p '*' "$1"
  install -d -m 700 -o "$1" -g "$1" "/home/$1/.ssh"
  install -m 600 -o "$1" -g "$1" /etc/jobcell/ssh/key.pub "/home/$1/.ssh/authorized_keys"
}

# What its systemd gives a login: all three as Debian 12 has it; one that has not the processor is like those of older systems.
give_no_cpu() {
  local folder
  folder=/etc/systemd/system/user@$(id -u "$1").service.d
  mkdir -p "$folder"
  # Emptied first: what is named is added to what the unit has.
  printf '[Service]\nDelegate=\nDelegate=memory pids\n' >"$folder/delegate.conf"
  systemctl daemon-reload
}

install -d -m 750 -g jobcell /etc/jobcell/ssh
ssh-keygen -q -t ed25519 -N '' -f /etc/jobcell/ssh/key
chown jobcell /etc/jobcell/ssh/key
cat /etc/jobcell/ssh/key.pub >>/root/.ssh/authorized_keys
for one in fleeting lingers "$GIVEN" "$LOGIN"; do login "$one"; done
give_no_cpu lingers
loginctl enable-linger lingers
loginctl enable-linger "$GIVEN"
printf '127.0.0.1 %s\n' "$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" >/etc/jobcell/ssh/known_hosts
{
  printf 'hosts:\n'
  for one in root fleeting lingers "$GIVEN"; do printf '  as-%s: {address: 127.0.0.1, login: %s, credential: key}\n' "$one" "$one"; done
  printf 'credentials: {key: {key_file: /etc/jobcell/ssh/key}}\nknown_hosts: [/etc/jobcell/ssh/known_hosts]\n'
} >/etc/jobcell/ssh/inventory.yaml
chmod 640 /etc/jobcell/ssh/inventory.yaml
chgrp jobcell /etc/jobcell/ssh/inventory.yaml
printf 'docker: {enabled: false}\nagent: {drain_mode: handover}\nssh: {inventory: /etc/jobcell/ssh/inventory.yaml}\n' >/etc/jobcell/config.yaml
systemctl restart jobcell-up
ready

# job LOGIN LIMITS SCRIPT: runs it to its end, and leaves what is known of it in $job and what it wrote in $out.
job() {
  printf 'target: {host: as-%s}\nresources: %s\nscript: |\n' "$1" "$2" >/root/job.yaml
  printf '%s\n' "$3" | sed 's/^/  /' >>/root/job.yaml
  submit /root/job.yaml
  ended "$id"
  job=$(jobcell job get "$id" -o json)
  out=$(jobcell job logs "$id")
}

readonly ALL='{memory: 64MiB, pids: 20, cpu: 0.5}'
# shellcheck disable=SC2016 # It is read there.
readonly OWN='cd "/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup)" && pwd && for one in memory.max memory.swap.max pids.max cpu.max; do echo "$one $(cat $one 2>&1)"; done'
groups_of_jobs() { find /sys/fs/cgroup -type d -path '*/jobcell-hub-*.scope/jobcell-*' ! -name jobcell-hub; }
no_groups() { [ -z "$(groups_of_jobs)" ]; }

for one in root "$GIVEN" lingers; do
  job "$one" "$ALL" "$OWN"
  has "$out" 'memory.max 67108864' "$one: its limit of memory"
  has "$out" 'memory.swap.max 0' "$one: no swap beyond it"
  has "$out" 'pids.max 20' "$one: its limit of processes"
  case "$one" in
    lingers)
      has "$(fact cgroup_limits)" 'memory,pids' "$one: what its systemd gives it"
      has "$(fact limits_not_in_force)" 'cpu 0.5: ' "$one: what it does not"
      ;;
    *)
      has "$out" 'cpu.max 50000 100000' "$one: its share of the processor"
      is "$(fact cgroup_limits)" 'memory,pids,cpu' "$one: all of them"
      ;;
  esac
  case "$one" in
    root) has "$out" '/system.slice/jobcell-hub-' "$one: a scope of the system's" ;;
    *) has "$out" "/user@$(id -u "$one").service/" "$one: a scope of its own systemd's" ;;
  esac
  job "$one" '{memory: 64MiB}' 'exec tail /dev/zero'
  is "$(cause)" out_of_memory "$one: a job that eats all memory"
  job "$one" '{pids: 8}' 'for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait; exit 0'
  has "$(printf '%s' "$job" | jq -c .usage.limits_met)" '"name":"pids"' "$one: processes that were refused"
  job "$one" '{cpu: 0.1}' 'timeout 4 sh -c "while :; do :; done"; exit 0'
  if [ "$one" != lingers ]; then has "$(printf '%s' "$job" | jq -c .usage.limits_met)" '"name":"cpu"' "$one: a share that was too small"; fi
  eventually "$one: its groups are gone" no_groups
done

job fleeting "$ALL" "$OWN"
is "$(cause)" exit_code 'fleeting: a login that does not linger has its job run'
has "$(fact limits_not_in_force)" 'does not linger' 'fleeting: without limits, and says why'

# Sessions come and go, and the hub of a login that lingers stays where it is.
printf 'target: {host: as-lingers}\nresources: {memory: 64MiB}\nretry: {infrastructure: 0}\nscript: "echo here; exec sleep 600"\n' >/root/job.yaml
submit /root/job.yaml
long=$id
eventually 'lingers: a job that stays' says "$long" here
systemctl restart jobcell-up
ready
# shellcheck disable=SC2046 # Several.
loginctl terminate-session $(loginctl list-sessions --no-legend | awk '$3 == "lingers" { print $1 }') 2>/dev/null || true
is "$(state "$long")" running 'lingers: it outlives its session and the agent'
loginctl terminate-user lingers
ended "$long"
job=$(jobcell job get "$long" -o json)
is "$(cause)" cell_lost 'lingers: it goes with its login'
eventually 'lingers: its groups are gone' no_groups

systemctl stop jobcell-up
pids=$(pgrep -x jobcell-hub || true)
# shellcheck disable=SC2086 # Several.
if [ -n "$pids" ]; then kill -KILL $pids; fi

# The suite's own tests: first as a login that does not linger, then as one that does and has all of it.
tests() {
  env JOBCELL_TEST_ENGINE=required RUST_BACKTRACE=0 /mnt/it "$1" --test-threads=1 --nocapture >/root/tests.log 2>&1 || {
    tail -n 60 /root/tests.log
    bad "$1 fails here"
  }
  grep -E '^test .* ok$' /root/tests.log || true
}
tests ssh::limits::limits_that_nobody
tests ssh::resident::a_warden_stays
loginctl enable-linger "$LOGIN"
eventually 'the systemd of the login of the tests' test -d "/sys/fs/cgroup/user.slice/user-$(id -u "$LOGIN").slice/user@$(id -u "$LOGIN").service"
tests ssh::limits::a_job_is_held
tests ssh::limits::groups_go
tests ssh::limits::an_agent_that_comes_back
if grep -q SKIPPED /root/tests.log; then bad 'the tests of version 2 were skipped'; fi
ok 'tests/it/ssh/limits.rs, version 2'

# The package on a host: the service as docs/start-host.md has it, jobs in cells with limits of version 2, and what systemd says. Run by scripts/vm.sh.
# shellcheck shell=bash
# shellcheck source=scripts/vm/lib.sh
. "$(dirname "$0")/lib.sh"

# A part before this one may have left it running, with settings of its own.
systemctl stop jobcell-up 2>/dev/null || true
printf 'docker: {pin_cores: true}\nagent: {drain_mode: handover}\n' >/etc/jobcell/config.yaml

# What every guest misses that stands on no file: the warnings are told, a FAIL ends this.
jobcell doctor >/root/doctor 2>&1 || { cat /root/doctor && bad 'doctor finds something that keeps jobs from running'; }
grep -E '^ *(warn|FAIL)' /root/doctor | sed 's/^/     /' || true
ok 'doctor'

systemctl enable --now jobcell-up
ready
has "$(systemctl status --no-pager jobcell-up)" 'Active: active (running)' 'systemctl enable --now'
has "$(jobcell exec -- id)" 'uid=' 'exec'
jobcell job submit /usr/share/doc/jobcell/examples/hello.yaml --follow >/root/hello
ok "the first job of the documents"
jobcell job list >/dev/null
jobcell keys add ci --role submit --expires-in 90d >/dev/null
is "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:7807/readyz)" 200 'readyz'
has "$(curl -s http://127.0.0.1:7807/metrics)" 'jobcell_jobs' 'metrics'
has "$(journalctl EVENT=attempt.ended -n 5 --no-pager)" 'ended' 'the journal by EVENT='
id=$(jobcell job list -o json | jq -r '(.jobs? // .)[0].id')
has "$(journalctl "JOB_ID=$id" --no-pager)" "$id" 'the journal by JOB_ID='
jobcell audit --since 1h >/dev/null

# cell RESOURCES SCRIPT
cell() {
  printf 'preset: bash\nresources: %s\nretry: {infrastructure: 0}\nscript: |\n' "$1" >/root/job.yaml
  printf '%s\n' "$2" | sed 's/^/  /' >>/root/job.yaml
  submit /root/job.yaml
  ended "$id"
  job=$(jobcell job get "$id" -o json)
  out=$(jobcell job logs "$id")
}
is "$(docker info --format '{{.CgroupVersion}} {{.CgroupDriver}}')" '2 systemd' 'the engine has version 2, by systemd'
# shellcheck disable=SC2016 # It is read there.
cell '{memory: 64MiB, pids: 20, cpu: 0.5}' 'cd /sys/fs/cgroup; for one in memory.max memory.swap.max pids.max cpu.max cpuset.cpus.effective; do echo "$one $(cat $one)"; done'
printf '%s\n' "$out" | sed 's/^/     /'
has "$out" 'cpu.max 50000 100000' 'a cell: its share of the processor'
has "$out" 'memory.swap.max 0' 'a cell: no swap'
has "$out" 'pids.max ' 'a cell: a limit of processes'
case "$(printf '%s\n' "$out" | sed -n 's/^cpuset.cpus.effective //p')" in 0 | 1) ok 'a cell: one core of two' ;; *) bad "a cell: its cores are $out" ;; esac
cell '{memory: 64MiB}' 'exec tail /dev/zero'
is "$(cause)" out_of_memory 'a cell that eats all memory'
cell '{pids: 8}' 'for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 2 & done; wait; exit 0'
has "$(printf '%s' "$job" | jq -c .usage.limits_met)" '"name":"pids"' 'a cell: processes that were refused'
cell '{cpu: 0.1}' 'timeout 6 bash -c "while :; do :; done"; exit 0'
has "$(printf '%s' "$job" | jq -c .usage.limits_met)" '"name":"cpu"' 'a cell: a share that was too small'
printf '%s' "$job" | jq -c '.receipt[] | select(.[0] | test("seccomp|apparmor|cgroup|capab|user"))' | sed 's/^/     /'

# A job lives through a reload, a restart of the service and its crash.
printf 'preset: bash\nretry: {infrastructure: 0}\nscript: |\n  echo here; until [ -e /tmp/done ]; do sleep 1; done; echo over\n' >/root/job.yaml
submit /root/job.yaml
long=$id
eventually 'a long job runs' says "$long" here
cells() { docker ps --quiet --filter label=jobcell.job; }
before=$(docker ps --quiet --no-trunc)
printf 'docker: {pin_cores: true}\nagent: {drain_mode: handover, slots: 2}\n' >/etc/jobcell/config.yaml
systemctl reload jobcell-up
is "$(state "$long")" running 'systemctl reload: it runs on'
systemctl restart jobcell-up
ready
is "$(state "$long")" running 'systemctl restart: it runs on'
main=$(systemctl show jobcell-up --property=MainPID --value)
kill -KILL "$main"
other() { now=$(systemctl show jobcell-up --property=MainPID --value) && [ "$now" != "$main" ] && [ "$now" != 0 ]; }
eventually 'after its crash it is started again' other
ready
is "$(state "$long")" running 'after a crash: it runs on'
is "$(docker ps --quiet --no-trunc)" "$before" 'in the same cell'
docker exec "$before" touch /tmp/done
ended "$long"
job=$(jobcell job get "$long" -o json)
is "$(cause) $(jobcell job logs "$long" | tr '\n' ' ')" 'exit_code here over ' 'and its end is its own'
is "$(printf '%s' "$job" | jq .attempt)" 1 'it was begun once'
no_cells() { [ -z "$(docker ps --all --quiet)" ]; }
eventually 'no cell is left' no_cells

said=$(systemd-analyze security jobcell-up --no-pager | tail -n 1)
printf '     %s\n' "$said"
has "$said" OK 'systemd-analyze security'
has "$(systemctl show jobcell-up --property=NRestarts)" 'NRestarts=1' 'one restart, the one that was forced'
systemctl stop jobcell-up
is "$(systemctl is-failed jobcell-up || true)" inactive 'systemctl stop'

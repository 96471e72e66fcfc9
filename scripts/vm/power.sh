# The power is cut from outside while jobs run, wait and are taken in: `before` begins the service, `flood N` submits until it is over,
# `after N` looks at what is there once the machine has booted again. Run by scripts/vm.sh.
# shellcheck shell=bash
# shellcheck source=scripts/vm/lib.sh
. "$(dirname "$0")/lib.sh"

readonly API=http://127.0.0.1:7807/v1/jobs
key() { cat /var/lib/jobcell/admin.key; }

# Jobs that no agent can run stay where they are.
readonly WAITS='{"preset":"bash","script":"true","requires":{"labels":{"nobody":"has"}}}'

case "$1" in
  before)
    printf 'agent: {slots: 1}\n' >/etc/jobcell/config.yaml
    systemctl enable jobcell-up
    systemctl restart jobcell-up
    ready
    ;;
  flood)
    # One that runs, and may be tried once; one that waits behind it, and one that was to be tried again. Then as many as there is time for.
    printf 'preset: bash\nretry: {infrastructure: 0}\nlost_after: 1m\nscript: |\n  echo "before cut %s"; sleep 3600\n' "$2" >/root/job.yaml
    submit /root/job.yaml
    running=$id
    until_holds says "$running" "before cut $2"
    printf 'preset: bash\nscript: "echo waited"\n' >/root/job.yaml
    submit /root/job.yaml
    # What was told is kept by who asked.
    printf '{"id":"%s"}\nrunning\n{"id":"%s"}\nwaiting\n' "$running" "$id"
    header="Authorization: Bearer $(key)"
    for n in $(seq 4000); do
      if [ "$n" -gt 1 ]; then printf 'next\n'; fi
      printf 'url = "%s"\nheader = "%s"\njson = "%s"\nwrite-out = "\\n%%{http_code}\\n"\n' "$API" "$header" "${WAITS//\"/\\\"}"
    done >/root/flood
    exec curl --silent --no-buffer --config /root/flood
    ;;
  after)
    ready
    journalctl --no-pager --quiet -k --grep 'EXT4-fs.*(recovery|orphan)' | tail -n 2 | sed 's/^/     /' || true
    # Each line of a code stands behind what was answered; the last answer may be cut off itself, and was told to nobody then.
    running='' waiting='' last='' acknowledged=()
    while IFS= read -r line; do
      case "$line" in
        running) running=$(printf '%s' "$last" | jq -re .id) ;;
        waiting) waiting=$(printf '%s' "$last" | jq -re .id) ;;
        201) acknowledged+=("$(printf '%s' "$last" | sed -n 's/^{"id":"\([^"]*\)".*/\1/p')") ;;
        [0-9][0-9][0-9]) bad "a submission was answered with $line: $last" ;;
      esac
      last=$line
    done </root/acknowledged
    if [ ${#acknowledged[@]} -lt 20 ]; then bad "only ${#acknowledged[@]} submissions were acknowledged before the power was cut"; fi
    header="Authorization: Bearer $(key)"
    for one in "${acknowledged[@]}"; do
      printf 'url = "%s/%s"\nheader = "%s"\nwrite-out = "\\n%%{http_code}\\n"\nnext\n' "$API" "$one" "$header"
    done | sed '$d' >/root/looks
    curl --silent --config /root/looks >/root/found
    is "$(grep -c '^200$' /root/found)" "${#acknowledged[@]}" "cut $2: each of ${#acknowledged[@]} acknowledged submissions is there"
    is "$(grep -o '"phase":"[a-z]*"' /root/found | sort -u)" '"phase":"queued"' "cut $2: and waits"
    ended "$running"
    job=$(jobcell job get "$running" -o json)
    # By its agent, or, where what that had noted of it was not on the disk yet, by the end of its lease.
    case "$(cause) $(printf '%s' "$job" | jq .attempt)" in
      'cell_lost 1' | 'agent_lost 1' | 'lease_expired 1') ok "cut $2: the job that ran is told as lost ($(cause)), and was not begun twice" ;;
      *) bad "cut $2: the job that ran is told as $(cause), try $(printf '%s' "$job" | jq .attempt)" ;;
    esac
    is "$(jobcell job logs "$running" 2>/dev/null)" "before cut $2" "cut $2: what it had written is there"
    ended "$waiting"
    job=$(jobcell job get "$waiting" -o json)
    is "$(cause) $(jobcell job logs "$waiting")" 'exit_code waited' "cut $2: the job behind it ran after the boot"
    no_cells() { [ -z "$(docker ps --all --quiet)" ]; }
    eventually "cut $2: no cell is left" no_cells
    systemctl stop jobcell-up
    is "$(journalctl -b --no-pager -u jobcell-up PRIORITY=3 --quiet | wc -l)" 0 "cut $2: the service has nothing to complain of"
    systemctl start jobcell-up
    ready
    ;;
esac

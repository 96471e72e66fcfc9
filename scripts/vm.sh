#!/usr/bin/env bash
# The product on a host of its own: a Debian with systemd as its init, control groups of version 2 and its own engine, in a virtual machine.
#
#   scripts/vm.sh [--binary FILE --tests FILE] [--keep] [PART...]     PART: limits, package, power; none means all of them
#
#   limits    jobs over SSH with limits: logins that linger, that do not, and root; tests/it/ssh/limits.rs runs there too
#   package   the package as docs/start-host.md has it: service, jobs, limits, reload, restart, what systemd says of it
#   power     the power is cut with jobs that run and that wait, JOBCELL_VM_CUTS times (default 3), under a flood of submissions
#
# --keep leaves the machine as it is at the end, and says how to get in and how to end it. FILE are the program and the integration tests of one build; without them both are built here. The machine reaches nothing, and is reached
# by SSH alone, on a port of 127.0.0.1. Everything lies in target/vm; the machine's base is made once. Debian, root. With KVM it takes
# minutes; without it the processor is emulated (JOBCELL_VM_ACCEL=tcg), and it takes half an hour.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly MAKE_SECONDS=900 PART_SECONDS=1800 COPY_SECONDS=300
: "${JOBCELL_DEBIAN_MIRROR:=http://deb.debian.org/debian}"
: "${JOBCELL_VM_CUTS:=3}"
readonly SUITE=bookworm
readonly PACKAGES=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,openssh-server,docker.io,apparmor,busybox-static,linux-image-cloud-amd64,initramfs-tools,iproute2,iptables,procps,curl,ca-certificates,adduser,udev,kmod,jq

cd "$(project_root)"
dir=$PWD/target/vm
binary='' tests='' keep=no parts=()
while [ $# -gt 0 ]; do
  case "$1" in
    --binary) binary=${2:?--binary needs a file} && shift 2 ;;
    --tests) tests=${2:?--tests needs a file} && shift 2 ;;
    --keep) keep=yes && shift ;;
    limits | package | power) parts+=("$1") && shift ;;
    *) fail $EX_USAGE "unknown argument $1; see the head of this script." ;;
  esac
done
if [ ${#parts[@]} -eq 0 ]; then parts=(limits package power); fi
if ! is_debian || ! is_root; then fail $EX_UNAVAILABLE "the machine is made from Debian packages, as root on Debian."; fi
mkdir -p "$dir"
exec 8>"$dir/lock"
flock -n 8 || fail $EX_UNAVAILABLE "another run uses $dir."

# Nested virtualisation may have the device and still not run a plain kernel: what counts is what the processor says.
accel=${JOBCELL_VM_ACCEL:-}
if [ -z "$accel" ]; then
  accel=tcg
  if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accel=kvm; fi
fi
case "$accel" in
  kvm) cpu=(-accel kvm -cpu host) BOOT_SECONDS=120 ;;
  tcg) cpu=(-accel "tcg,thread=multi" -cpu max) BOOT_SECONDS=420 ;;
  *) fail $EX_USAGE "JOBCELL_VM_ACCEL is kvm or tcg, not '$accel'." ;;
esac

# tool COMMAND PACKAGE
tool() { have "$1" || apt_install "$2" || fail $EX_UNAVAILABLE "could not install $2; the reason is above."; }

# The file system of the machine: made once, and again when this file changes.
make_base() {
  local recipe proxy options=() root=$dir/root
  recipe=$({ declare -f make_base; printf "%s\n" "$SUITE" "$PACKAGES"; } | sha256sum | cut -c1-16)
  if [ "$(cat "$dir/recipe" 2>/dev/null)" = "$recipe" ]; then return; fi
  say "making the machine's base"
  rm -rf "$root" "$dir"/{recipe,key,key.pub,base.img}
  proxy=$(apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
  if [ -n "$proxy" ]; then options+=("--aptopt=Acquire::http::Proxy \"$proxy\""); fi
  if ! bounded "$MAKE_SECONDS" mmdebstrap --quiet --mode=root --variant=minbase --components=main --include="$PACKAGES" \
    --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    ${options[@]+"${options[@]}"} "$SUITE" "$root" "deb $JOBCELL_DEBIAN_MIRROR $SUITE main" >"$dir/make.log" 2>&1; then
    tail -n 30 "$dir/make.log" >&2
    fail $EX_SOFTWARE "could not make the machine's file system; the end of its log is above."
  fi
  rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap
  printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
  printf 'jobcell-vm\n' >"$root/etc/hostname"
  printf '127.0.0.1 localhost jobcell-vm\n::1 localhost\n' >"$root/etc/hosts"
  printf '[Match]\nName=eth*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/10-eth.network"
  chroot "$root" systemctl enable systemd-networkd >/dev/null 2>&1
  # A journal that outlives a cut, as an installed Debian has it.
  mkdir -p "$root/var/log/journal"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
  install -d -m 700 "$root/root/.ssh"
  install -m 600 "$dir/key.pub" "$root/root/.ssh/authorized_keys"
  cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
  cp "$root"/boot/initrd.img-* "$dir/initrd"
  cut -d' ' -f1,2 "$root/etc/ssh/ssh_host_ed25519_key.pub" | sed 's/^/vm /' >"$dir/known_hosts"
  truncate -s 8G "$dir/base.img"
  bounded "$MAKE_SECONDS" mke2fs -q -F -t ext4 -d "$root" "$dir/base.img"
  rm -rf "$root"
  printf '%s\n' "$recipe" >"$dir/recipe"
}

qemu='' port=''

# Writes go to the disk's file before the machine is told that they are done, so what it holds when qemu is killed is what a disk without a
# cache of its own holds when the power goes: everything that the kernel had sent, and nothing of what it still kept in memory.
readonly CACHE=writethrough

start() {
  local try
  for try in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 12000))
    qemu-system-x86_64 "${cpu[@]}" -m 3072 -smp 2 -nodefaults -no-reboot -display none -monitor none \
      -kernel "$dir/vmlinuz" -initrd "$dir/initrd" -append 'root=/dev/vda rw console=ttyS0 net.ifnames=0' \
      -drive "file=$dir/disk.img,format=raw,if=virtio,cache=$CACHE" -drive "file=$dir/share.img,format=raw,if=virtio,readonly=on" \
      -device virtio-rng-pci -serial "file:$dir/console.log" \
      -netdev "user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22" -device virtio-net-pci,netdev=n 8>&- >"$dir/qemu.log" 2>&1 &
    qemu=$!
    if wait_boot; then return; fi
    grep -q 'host forwarding' "$dir/qemu.log" || break
    say "port $port was taken (try $try)"
  done
  tail -n 20 "$dir/qemu.log" "$dir/console.log" >&2
  fail $EX_SOFTWARE "the machine did not boot within $BOOT_SECONDS s; its console is $dir/console.log."
}

wait_boot() {
  local end=$((SECONDS + BOOT_SECONDS)) state
  while kill -0 "$qemu" 2>/dev/null && [ $SECONDS -lt $end ]; do
    state=$(there 60 'systemctl is-system-running --wait' 2>/dev/null || true)
    case "$state" in running | degraded) return 0 ;; esac
    sleep 1
  done
  return 1
}

# The power is cut: nothing in the machine can do anything about it.
cut_power() {
  kill -KILL "$qemu" 2>/dev/null || true
  wait "$qemu" 2>/dev/null || true
  qemu=''
}

# there SECONDS SCRIPT: as root in the machine.
there() {
  local seconds=$1
  shift
  bounded "$seconds" ssh -q -F none -i "$dir/key" -p "$port" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=60 -o HostKeyAlias=vm \
    -o UserKnownHostsFile="$dir/known_hosts" -o ServerAliveInterval=20 -o ServerAliveCountMax=6 root@127.0.0.1 "$*"
}

# put FILE PLACE
put() { there "$COPY_SECONDS" "cat >'$2'" <"$1"; }

part() { there "$PART_SECONDS" "exec bash -euo pipefail /mnt/$*"; }

tool qemu-system-x86_64 qemu-system-x86
tool mmdebstrap mmdebstrap
tool mke2fs e2fsprogs
tool ssh openssh-client
have docker || fail $EX_UNAVAILABLE "no docker client on PATH; the job images are made with it (scripts/engine.sh)."
if [ -z "$binary" ] || [ -z "$tests" ]; then
  need_build_tools
  cargo build --locked --bin jobcell >&2
  tests=$(cargo test --locked --no-run --test it --message-format=json | sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p' | tail -n 1)
  binary=target/debug/jobcell
fi
make_base
"$here/deb.sh" --fast --binary "$binary" --out "$dir/deb"
DOCKER_HOST=$("$here/engine.sh")
export DOCKER_HOST
"$here/images.sh"

leave() {
  if [ "$keep" = yes ] && [ -n "$qemu" ] && kill -0 "$qemu" 2>/dev/null; then
    say "it runs on as process $qemu: ssh -F none -i $dir/key -o HostKeyAlias=vm -o UserKnownHostsFile=$dir/known_hosts -p $port root@127.0.0.1"
  else
    cut_power
  fi
}
trap leave EXIT
# What goes in with it, on a disk of its own. The tests look for the program where it was built.
rm -rf "$dir/share"
mkdir -p "$dir/share"
cp "$here"/vm/*.sh "$dir/share"
cp "$(find "$dir/deb" -name '*.deb')" "$dir/share/jobcell.deb"
cp target/deb/jobcell "$dir/share/jobcell"
strip -o "$dir/share/it" "$tests"
bounded "$COPY_SECONDS" docker save --output "$dir/share/images.tar" jobcell/bash:1 jobcell/python:1
rm -f "$dir/share.img"
truncate -s 1G "$dir/share.img"
bounded "$COPY_SECONDS" mke2fs -q -F -t ext4 -d "$dir/share" "$dir/share.img"
rm -f "$dir/disk.img"
cp --sparse=always "$dir/base.img" "$dir/disk.img"
say "booting ($accel, disk with cache=$CACHE)"
start
# shellcheck disable=SC2016 # It is read there.
say "booted after $SECONDS s: $(there 60 '. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(systemctl --version | head -n 1), engine $(docker version --format "{{.Server.Version}}")"')"
there "$COPY_SECONDS" "mount -o ro /dev/vdb /mnt && install -D /mnt/jobcell '$PWD/target/debug/jobcell' &&
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y /mnt/jobcell.deb" >&2
if [ "${parts[*]}" != limits ]; then there "$COPY_SECONDS" 'docker load --quiet --input /mnt/images.tar' >&2; fi

for name in "${parts[@]}"; do
  begun=$SECONDS
  say "== $name"
  if [ "$name" != power ]; then
    part "$name.sh" || fail $EX_SOFTWARE "$name: see above; the machine's console is $dir/console.log."
  else
    part power.sh before
    for cut in $(seq "$JOBCELL_VM_CUTS"); do
      # What was acknowledged is told to us, who stay.
      there "$PART_SECONDS" "exec bash -euo pipefail /mnt/power.sh flood $cut" >"$dir/acknowledged" 2>/dev/null &
      flood=$!
      end=$((SECONDS + BOOT_SECONDS))
      while [ "$(grep -c '^201$' "$dir/acknowledged" || true)" -lt $((cut * 50)) ] && [ $SECONDS -lt $end ]; do sleep 0.2; done
      cut_power
      wait "$flood" 2>/dev/null || true
      start
      there "$COPY_SECONDS" 'mount -o ro /dev/vdb /mnt'
      put "$dir/acknowledged" /root/acknowledged
      part "power.sh after $cut"
    done
  fi
  say "== $name: done ($((SECONDS - begun)) s)"
done
say "all held: ${parts[*]} ($SECONDS s)"

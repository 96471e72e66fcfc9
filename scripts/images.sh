#!/usr/bin/env bash
# Makes the job images jobcell/bash and jobcell/python, and jobcell/tools for tests, in the engine that DOCKER_HOST names (default: the local one).
#
#   scripts/images.sh [OPTION...] [NAME...]      NAME: bash, python, tools; none means the first two
#     --method packages|dockerfile   packages: from Debian packages with mmdebstrap, no registry needed (Debian, root);
#                                    dockerfile: `docker build` of deploy/images/NAME/Dockerfile, which pulls debian:bookworm-slim.
#                                    Default: packages where that works, else dockerfile.
#     --load HOST                    also copy the images to the engine at HOST, for example unix:///run/other.sock
#     --force                        make them even if they are there
#
# An image carries a label with the hash of its recipe (the files under deploy/images/ that make it). One with the right hash is
# left alone, so this script costs a moment when there is nothing to do.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly RECIPE_LABEL=jobcell.recipe
# The tag that presets name. It changes when an image loses or breaks something that jobs rely on.
readonly TAG=1
readonly MAKE_SECONDS=600   # Downloads of up to 40 MB over a slow line.
readonly IMPORT_SECONDS=180 # Engine-side unpacking on a slow disk.

images=$(project_root)/deploy/images
names=() method=auto load_to='' force=no
while [ $# -gt 0 ]; do
  case "$1" in
    --method) method=${2:?--method needs packages or dockerfile} && shift 2 ;;
    --load) load_to=${2:?--load needs the address of an engine} && shift 2 ;;
    --force) force=yes && shift ;;
    -*) fail $EX_USAGE "unknown option $1; see the head of this script." ;;
    *)
      [ -f "$images/$1/packages" ] || fail $EX_USAGE "unknown image '$1': there is no deploy/images/$1/packages."
      names+=("$1") && shift
      ;;
  esac
done
if [ ${#names[@]} -eq 0 ]; then names=(bash python); fi
case "$method" in
  auto) if is_debian && is_root; then method=packages; else method=dockerfile; fi ;;
  packages | dockerfile) ;;
  *) fail $EX_USAGE "--method is packages or dockerfile, not '$method'." ;;
esac

have docker || fail $EX_UNAVAILABLE "no docker client on PATH; scripts/engine.sh tells how to get one."

# The method is part of the recipe: the two ways give different trees.
recipe_of() {
  local name=$1
  local -a files=(bash/packages)
  if [ "$name" != bash ]; then files+=("$name/packages"); fi
  if [ "$method" = packages ]; then files+=(rootfs.sh); else files+=("$name/Dockerfile"); fi
  (cd "$images" && { echo "$method"; cat "${files[@]}"; } | sha256sum | cut -c1-16)
}

present() {
  local found
  found=$(engine image inspect --format "{{index .Config.Labels \"$RECIPE_LABEL\"}}" "jobcell/$1:$TAG" 2>/dev/null) || return 1
  [ "$found" = "$(recipe_of "$1")" ]
}

make_from_packages() {
  local name=$1 work
  if ! have mmdebstrap; then
    if ! is_debian || ! is_root; then
      fail $EX_UNAVAILABLE "mmdebstrap is not installed; use --method dockerfile, or install it."
    fi
    say "installing mmdebstrap"
    apt_install mmdebstrap || fail $EX_UNAVAILABLE "could not install mmdebstrap; the reason is above."
  fi
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # The directory of now, not of later.
  trap "rm -rf '$work'" EXIT
  if ! bounded "$MAKE_SECONDS" "$images/rootfs.sh" "$name" >"$work/root.tar" 2>"$work/log"; then
    tail -n 30 "$work/log" >&2
    fail $EX_SOFTWARE "could not make the root file system of jobcell/$name; the end of its log is above."
  fi
  bounded "$IMPORT_SECONDS" docker import \
    --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'WORKDIR /' \
    --change 'CMD ["/bin/bash"]' \
    --change "LABEL $RECIPE_LABEL=$(recipe_of "$name")" \
    --change "LABEL org.opencontainers.image.title=jobcell/$name" \
    --message "Debian packages of deploy/images/$name/packages" \
    - "jobcell/$name:$TAG" <"$work/root.tar" >/dev/null
  rm -rf "$work"
  trap - EXIT
}

make_from_dockerfile() {
  local name=$1
  bounded "$MAKE_SECONDS" docker build --quiet --file "$images/$name/Dockerfile" \
    --label "$RECIPE_LABEL=$(recipe_of "$name")" --tag "jobcell/$name:$TAG" "$images" >/dev/null ||
    fail $EX_SOFTWARE "docker build of deploy/images/$name/Dockerfile failed; its log is above."
}

# One image, once: a second run waits for the first and then finds it present. The lock is per engine-less host, which
# is coarse and enough.
make_image() {
  local name=$1 lock started old
  if [ "$force" = no ] && present "$name"; then return; fi
  lock=${TMPDIR:-/tmp}/jobcell-image-$name-$(id -u).lock
  (
    if have flock; then
      exec 8>"$lock"
      flock -w "$MAKE_SECONDS" 8 || fail $EX_SOFTWARE "another run makes jobcell/$name for more than $MAKE_SECONDS s."
      if [ "$force" = no ] && present "$name"; then exit 0; fi
    fi
    started=$SECONDS
    say "making jobcell/$name:$TAG ($method)"
    old=$(engine image inspect --format '{{.Id}}' "jobcell/$name:$TAG" 2>/dev/null) || old=
    if [ "$method" = packages ]; then make_from_packages "$name"; else make_from_dockerfile "$name"; fi
    engine tag "jobcell/$name:$TAG" "jobcell/$name:latest"
    # The image that this one replaces has lost its names; it goes unless something still uses it.
    if [ -n "$old" ]; then engine image rm "$old" >/dev/null 2>&1 || true; fi
    say "jobcell/$name:$TAG is ready ($((SECONDS - started)) s)"
  )
}

for name in "${names[@]}"; do
  make_image "$name"
  if [ -n "$load_to" ]; then
    bounded "$IMPORT_SECONDS" docker save "jobcell/$name:$TAG" "jobcell/$name:latest" |
      bounded "$IMPORT_SECONDS" docker --host "$load_to" load --quiet >/dev/null
    say "jobcell/$name:$TAG is in the engine at $load_to"
  fi
done

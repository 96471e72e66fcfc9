#!/usr/bin/env bash
# Builds the peers that compare.py measures, from the Go module proxy with the ordinary Go client, under target/peers.
#
#   benches/peers/build.sh [NAME...]     NAME: gitlab, buildkite, gitlab-image; none means the first two
#     PEERS_DIR=DIR      where everything goes (default: target/peers); about 6 GB while it builds
#     PEERS_NICE=CMD     put before every build, for example "chrt -i 0 nice -n 19"
#
# The versions are fixed here, so that a table says what was measured. A peer that cannot be fetched or built is said and
# left out; the exit code is then 1, and compare.py goes on with the rest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"

# GitLab Runner has no tag that a Go module path without /v19 may carry; this is the commit of its 19.4.0.
readonly GITLAB_MODULE=gitlab.com/gitlab-org/gitlab-runner
readonly GITLAB_COMMIT=v1.11.1-0.20260903214710-fc1f1862bd91
readonly GITLAB_VERSION=19.4.0
readonly BUILDKITE_MODULE=github.com/buildkite/agent/v3
readonly BUILDKITE_VERSION=v3.137.2
readonly HELPER_IMAGE=jobcell-peers/gitlab-helper:$GITLAB_VERSION

dir=${PEERS_DIR:-$(project_root)/target/peers}
read -r -a before <<<"${PEERS_NICE:-}"
have go || fail $EX_UNAVAILABLE "no go on PATH: the peers are Go programs."
mkdir -p "$dir/bin" "$dir/tmp"
export GOPATH=$dir/gopath GOCACHE=$dir/gocache GOTMPDIR=$dir/tmp CGO_ENABLED=0
export GOFLAGS="${GOFLAGS:-} -buildvcs=false -modcacherw -trimpath"

# A module of our own around the peer: what `go install MODULE@VERSION` refuses (a `replace` in the peer's go.mod) is no
# matter to a module that merely requires it.
around() { # NAME MODULE VERSION [LINE OF go.mod...]
  local name=$1 module=$2 version=$3
  shift 3
  mkdir -p "$dir/$name"
  {
    printf 'module peers/%s\n\ngo %s\n\nrequire %s %s\n' "$name" "$(go env GOVERSION | sed 's/^go//; s/ .*//')" "$module" "$version"
    printf '%s\n' "$@"
  } >"$dir/$name/go.mod"
  rm -f "$dir/$name/go.sum"
}

# What GitLab Runner's docker executor does not need for a job with a `script:`, and what not every proxy has: the expression
# language of job inputs, the runner of `run:` steps, billing events, the gRPC wrapper, the masking exec proxy. Types and
# functions of that name that refuse take their place (absent/), and a main.go of ours that names one executor.
build_gitlab() {
  local said="-s -w -X $GITLAB_MODULE/common.VERSION=$GITLAB_VERSION -X $GITLAB_MODULE/common.REVISION=${GITLAB_COMMIT##*-}"
  local source name
  around gitlab $GITLAB_MODULE $GITLAB_COMMIT 'exclude github.com/moby/moby v28.5.2+incompatible' \
    "replace gitlab.com/gitlab-org/moa => $here/absent/moa" \
    "replace gitlab.com/gitlab-org/labkit/v2 => $here/absent/labkit" \
    "replace gitlab.com/gitlab-org/step-runner => $here/absent/step-runner"
  for name in runner helper; do
    mkdir -p "$dir/gitlab/$name"
    cp "$here/mains/$name/main.go" "$dir/gitlab/$name/"
  done
  cd "$dir/gitlab"
  source=$(go mod download -json $GITLAB_MODULE@$GITLAB_COMMIT | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  rm -rf source
  cp -r "$source" source
  chmod -R u+w source
  rm source/commands/wrapper.go source/commands/helpers/proxy_exec.go
  printf 'package steps\n\n// SubCommandName is what the server of steps would be called.\nconst SubCommandName = "steps"\n' >source/commands/steps/steps.go
  echo "replace $GITLAB_MODULE => ./source" >>go.mod
  "${before[@]}" go build -mod=mod -ldflags "$said" -o "$dir/bin/gitlab-runner" ./runner
  "${before[@]}" go build -mod=mod -ldflags "$said" -o "$dir/bin/gitlab-runner-helper" ./helper
  if have docker; then gitlab_helper_image; fi
}

build_buildkite() {
  around buildkite $BUILDKITE_MODULE $BUILDKITE_VERSION
  # One library of its artifact uploads is not on every proxy. Without it a stand-in that refuses takes its place.
  if ! (cd "$dir/buildkite" && go list -mod=mod -deps $BUILDKITE_MODULE >/dev/null 2>&1); then
    say "a dependency is not to be had: drjosh.dev/zzglob is replaced by benches/peers/absent/zzglob"
    around buildkite $BUILDKITE_MODULE $BUILDKITE_VERSION "replace drjosh.dev/zzglob => $here/absent/zzglob"
  fi
  (cd "$dir/buildkite" && "${before[@]}" go build -mod=mod -ldflags '-s -w' -o "$dir/bin/buildkite-agent" $BUILDKITE_MODULE)
}

# The image that GitLab Runner's docker executor runs its own steps in. Its registry has it ready; here it is the helper
# binary over the image of the jobs, with the one script that the real image has too. It has no git: no job here has sources.
gitlab_helper_image() {
  local context
  context=$(mktemp -d)
  cp "$dir/bin/gitlab-runner-helper" "$context/"
  printf '#!/bin/sh\numask 0000\nexec /bin/bash "$@"\n' >"$context/gitlab-runner-build"
  chmod 755 "$context"/*
  printf 'FROM jobcell/bash:1\nCOPY gitlab-runner-helper gitlab-runner-build /usr/bin/\nCMD ["sh"]\n' >"$context/Dockerfile"
  docker build --quiet --tag "$HELPER_IMAGE" "$context" >/dev/null
  rm -rf "$context"
}

# Runs one build in a shell of its own, so that its failure is known and ends nothing else.
attempt() { # NAME
  local built
  say "building $1"
  set +e
  (
    set -e
    case "$1" in
      gitlab) build_gitlab ;;
      buildkite) build_buildkite ;;
    esac
  )
  built=$?
  set -e
  if [ $built -ne 0 ]; then
    say "$1 cannot be built here; the reason is above"
    code=1
  fi
}

names=("$@")
if [ ${#names[@]} -eq 0 ]; then names=(gitlab buildkite); fi
code=0
for name in "${names[@]}"; do
  case "$name" in
    gitlab | buildkite) attempt "$name" ;;
    gitlab-image) gitlab_helper_image ;; # by itself, where the program is built but the engine is another one
    *) fail $EX_USAGE "unknown peer '$name'; see the head of this script." ;;
  esac
done
exit $code

#!/usr/bin/env bash
# Holds the Kubernetes chart to helm: lint, the values that it must refuse, and deploy/helm/rendered made anew of deploy/helm/values, which the tests read.
#
# helm is taken from PATH or from target/tools, where it is built from its Go module if it is not there yet: some minutes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly HELM=helm.sh/helm/v3/cmd/helm@v3.19.0
cd "$(project_root)"
PATH=$PWD/target/tools/bin:$PATH
if ! have helm; then
  have go || fail $EX_UNAVAILABLE "neither helm nor go is installed. On Debian: apt-get install golang-go."
  say "building helm into target/tools"
  GOBIN=$PWD/target/tools/bin go install "$HELM" >&2 || fail $EX_UNAVAILABLE "could not build helm; the reason is above."
fi

chart=deploy/helm/jobcell
for values in deploy/helm/values/*.yaml; do
  helm lint --strict --quiet "$chart" --values "$values" >&2 || fail $EX_SOFTWARE "$values: helm lint is not content."
done
for values in deploy/helm/refused/*.yaml; do
  wanted=$(sed -n 's/^# says: //p' "$values")
  if said=$(helm template jobcell "$chart" --kube-version 1.34.0 --values "$values" 2>&1); then fail $EX_SOFTWARE "$values is not refused."; fi
  case "$said" in *"$wanted"*) ;; *) fail $EX_SOFTWARE "$values is refused with other words than \"$wanted\": $said" ;; esac
done
rendered=deploy/helm/rendered
rm -rf "$rendered"
mkdir -p "$rendered"
for values in deploy/helm/values/*.yaml; do
  helm template jobcell "$chart" --namespace jobs --kube-version 1.34.0 --values "$values" >"$rendered/$(basename "$values")"
done
# What it was made of; a test sees when that has changed.
(cd deploy/helm && find jobcell values -type f | LC_ALL=C sort | xargs sha256sum >rendered/made-of.sha256)
say "$rendered: $(find "$rendered" -name '*.yaml' | wc -l) sets of manifests"

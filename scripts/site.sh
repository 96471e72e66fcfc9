#!/usr/bin/env bash
# Builds the site of the documents (mkdocs.yml) into target/site. A link or an anchor that leads nowhere, a page that the
# navigation does not have, and a page that would fetch anything from elsewhere are failures.
#
#   scripts/site.sh [serve | read [ARGUMENT...]]
#     serve   on http://127.0.0.1:8000, built anew whenever a page changes
#     read    builds it and reads every page in a real Chromium, wide and narrow, light and dark, and uses search, the copy
#             button and the keyboard: what a reader would stumble over is a failure. Arguments are scripts/site/browser.py's
#
# Needs python3 with venv and PyPI, once; the tool is kept in target/. `read` needs Chromium, and installs it on Debian as
# root. Without them it is skipped loudly, and fails where JOBCELL_TEST_ENGINE=required is set, as in CI.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

case ${1:-} in
  "") order=(build --clean) ;;
  serve) order=(serve --livereload) ;;
  read) order=(build --clean) ;;
  *) fail $EX_USAGE "usage: scripts/site.sh [serve | read [ARGUMENT...]]" ;;
esac

cd "$(project_root)"
wanted=scripts/site/requirements.txt
venv=target/site-tool-$(sha256sum "$wanted" | cut -c 1-12)
python_tool "$venv" mkdocs --requirement "$wanted"

# Not --quiet: --strict counts the warnings that are shown. The theme's own announcements are for its users, not for who builds this site.
export NO_MKDOCS_2_WARNING=true PYTHONDONTWRITEBYTECODE=1
"$venv/bin/mkdocs" "${order[@]}" --strict
if [ "${order[0]}" = build ]; then say "target/site: $(find target/site -name '*.html' | wc -l) pages"; fi
if [ "${1:-}" = read ]; then
  shift
  if ! have chromium && is_debian && is_root; then
    say "installing chromium from this system's packages"
    apt_install chromium || true # What is missing is said below.
  fi
  have chromium || have chromium-browser || have google-chrome ||
    skip "there is no chromium. On Debian: apt-get install --no-install-recommends chromium."
  exec scripts/site/browser.py "$@"
fi

#!/usr/bin/env bash
# Builds the site of the documents (mkdocs.yml) into target/site. A link or an anchor that leads nowhere, a page that the
# navigation does not have, and a page that would fetch anything from elsewhere are failures.
#
#   scripts/site.sh [serve]     serve: on http://127.0.0.1:8000, built anew whenever a page changes
#
# Needs python3 with venv and PyPI, once; the tool is kept in target/. Without them it is skipped loudly, and fails where
# JOBCELL_TEST_ENGINE=required is set, as in CI.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

case ${1:-} in
  "") order=(build --clean) ;;
  serve) order=(serve --livereload) ;;
  *) fail $EX_USAGE "usage: scripts/site.sh [serve]" ;;
esac

cd "$(project_root)"
wanted=scripts/site/requirements.txt
venv=target/site-tool-$(sha256sum "$wanted" | cut -c 1-12)
python_tool "$venv" mkdocs --requirement "$wanted"

# Not --quiet: --strict counts the warnings that are shown. The theme's own announcements are for its users, not for who builds this site.
export NO_MKDOCS_2_WARNING=true PYTHONDONTWRITEBYTECODE=1
"$venv/bin/mkdocs" "${order[@]}" --strict
if [ "${order[0]}" = build ]; then say "target/site: $(find target/site -name '*.html' | wc -l) pages"; fi

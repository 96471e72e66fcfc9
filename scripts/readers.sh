#!/usr/bin/env bash
# Prints a Python that has the readers which tests hold our documents to (scripts/readers.txt), and sees to it first: needs python3 with venv and
# PyPI, once; it is kept in target/. Without them it fails with 69.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

cd "$(project_root)"
wanted=scripts/readers.txt
venv=target/readers-$(sha256sum "$wanted" | cut -c 1-12)
exec 8>"${TMPDIR:-/tmp}/jobcell-readers-$(id -u).lock"
flock -w 300 8 || fail $EX_SOFTWARE "another run makes $venv for more than 300 s."
# Here nothing is skipped: who asks decides what it means that there are none.
JOBCELL_TEST_ENGINE=required python_tool "$venv" kubernetes-validate --requirement "$wanted"
echo "$PWD/$venv/bin/python"

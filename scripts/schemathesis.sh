#!/usr/bin/env bash
# Holds a running server to docs/openapi.json with generated requests: no answer of 5xx, none that the document does not
# have, none whose type or body is another than it says.
#
#   scripts/schemathesis.sh [short]
#
# Starts a `jobcell server` of its own on a free port (no engine is needed) and leaves nothing behind but the tool, which is
# kept in target/. Needs python3 with venv and PyPI; without them it is skipped loudly, and fails where
# JOBCELL_TEST_ENGINE=required is set, as in CI. SCHEMATHESIS_EXAMPLES and SCHEMATHESIS_SEED choose how many requests of
# each operation, and which.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

readonly VERSION=4.32.5
readonly START_SECONDS=30
case ${1:-} in
  "") examples=100 ;;
  short) examples=15 ;;
  *) fail $EX_USAGE "usage: scripts/schemathesis.sh [short]" ;;
esac
examples=${SCHEMATHESIS_EXAMPLES:-$examples}
seed=${SCHEMATHESIS_SEED:-1}

cd "$(project_root)"
venv=target/schemathesis-$VERSION
tool=$PWD/$venv/bin/schemathesis
python_tool "$venv" schemathesis "schemathesis==$VERSION"

find_cargo
cargo build --locked --bin jobcell
work=$(mktemp -d "${TMPDIR:-/tmp}/jobcell-schemathesis.XXXXXX")
server=
cleanup() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

# A generated wait may be long and valid; what is tested is not how well the server waits.
printf 'server: {wait_max: 1s}\n' >"$work/config.yaml"
RUST_LOG=info target/debug/jobcell server --listen 127.0.0.1:0 --data-dir "$work/data" --config "$work/config.yaml" \
  >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq $((START_SECONDS * 10))); do
  if [ -s "$work/data/endpoint" ]; then break; fi
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
if ! [ -s "$work/data/endpoint" ]; then
  cat "$work/server.log" >&2
  fail $EX_SOFTWARE "the server did not start"
fi
url=$(cat "$work/data/endpoint")
admin=$(cat "$work/data/admin.key")
# Prints the key of a new agent and the session that it has begun.
agent=$("$venv/bin/python" - "$url" "$admin" <<'PYTHON'
import json, sys, urllib.request
url, admin = sys.argv[1:]
def post(path, key, body):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return json.load(opener.open(request, timeout=10))
key = post("/v1/agents", admin, {"name": "generated-requests"})["key"]
session = post("/v1/agent/register", key, {"protocols": [1], "installation": "generated"})["session"]
print(key, session)
PYTHON
)

# The tool writes one value for each line; a line is enough.
cat >"$work/lines.py" <<'PYTHON'
import json, schemathesis
@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return (json.dumps(value) + "\n").encode()
PYTHON
export SCHEMATHESIS_HOOKS=lines PYTHONPATH=$work PYTHONDONTWRITEBYTECODE=1

# generated KEY OPTION...: requests to the operations that the options choose.
generated() (
  local key=$1
  shift
  # It keeps notes of its own where it runs.
  cd "$work" && "$tool" run "$url/openapi.json" --header "Authorization: Bearer $key" "$@" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
    --phases examples,coverage,fuzzing --max-examples "$examples" --seed "$seed" --generation-database none \
    --request-timeout 20 --warnings off --continue-on-failure --no-color
)

failed=no
# A stream of events ends with its job, and here nothing runs jobs: by itself, it is asked for jobs that are not there.
generated "$admin" --exclude-path-regex '^/v1/agent/|/logs/events$' || failed=yes
generated "$admin" --include-path-regex '/logs/events$' || failed=yes
# A registration begins a new session, so it comes when the old one has been used.
generated "${agent% *}" --include-path-regex '^/v1/agent/' --exclude-path /v1/agent/register \
  --header "Jobcell-Session: ${agent#* }" || failed=yes
generated "${agent% *}" --include-path /v1/agent/register || failed=yes
if grep -q ' ERROR \|panicked' "$work/server.log"; then
  grep ' ERROR \|panicked' "$work/server.log" | head -20 >&2
  failed=yes
fi
[ "$failed" = no ] || fail $EX_SOFTWARE "the server and its description do not agree; see above."

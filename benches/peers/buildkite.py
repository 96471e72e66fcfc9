"""The Buildkite agent, and a mock of the part of Buildkite's agent API that it uses.

The agent runs a command on its host; containers are the business of its docker plugin, which is a shell script that calls
`docker run`. The command here is what that plugin makes with its defaults. The mock says the shortest ping interval that the
protocol has (1 s); the agent adds up to one interval of chance. The hosted service can also push jobs over a stream, which
the mock cannot.
"""

import gzip
import json
import os
import re
import shlex
import uuid

from mock import Mock, Mocked
from system import IMAGE, SLOTS

PING_SECONDS = 1
CHUNK_BYTES = 102400


class Service(Mock):
    def __init__(self):
        super().__init__()
        self.agents = 0
        self.by_uuid = {}
        self.held = {}  # by access token

    def answer(self, method, path, headers, body):
        path, _, query = path.removeprefix("/v3").partition("?")
        token = headers.get("Authorization", "").removeprefix("Token ")
        if path == "/register":
            self.agents += 1
            return 200, {"id": str(uuid.uuid4()), "name": f"comparison-{self.agents}", "access_token": f"agent-{self.agents}",
                         "endpoint": f"http://127.0.0.1:{self.port}/v3", "ping_interval": PING_SECONDS,
                         "job_status_interval": 1, "heartbeat_interval": 10, "meta_data": []}, {}
        if path in ("/connect", "/disconnect", "/stop"):
            return 200, {}, {}
        if path == "/heartbeat":
            return 200, json.loads(body or b"{}"), {}
        if path == "/ping":
            job = self.hand_out()
            if not job:
                return 200, {"action": "idle"}, {}
            self.by_uuid[f"00000000-0000-4000-8000-{job.number:012d}"] = job
            return 200, {"job": self.document(job, "assigned")}, {}
        found = re.fullmatch(r"/jobs/([0-9a-f-]+)(?:/(\w+))?", path)
        job = found and self.by_uuid.get(found.group(1))
        if not job:
            return 404, {"message": "not found"}, {}
        what = found.group(2)
        if what == "accept":
            return 200, self.document(job, "accepted"), {}
        if what == "chunks":
            offset = int(re.search(r"offset=(\d+)", query).group(1))
            data = gzip.decompress(body)
            with self.lock:  # Chunks come over several connections, each with its place.
                if len(job.output) < offset + len(data):
                    job.output += bytes(offset + len(data) - len(job.output))
                job.output[offset:offset + len(data)] = data
            return 201, {}, {}
        if what == "finish":
            told = json.loads(body)
            if told.get("chunks_failed_count"):
                job.notes.append(f"chunks_failed_count {told['chunks_failed_count']}")
            job.finish("exit " + told.get("exit_status", "?"), told.get("signal_reason", ""))
            return 200, {}, {}
        if what is None and method == "GET":
            return 200, {"state": "running"}, {}
        return 200, {}, {}

    def document(self, job, state):
        number = f"00000000-0000-4000-8000-{job.number:012d}"
        command = ["docker", "run", "-t", "-i", "--rm", "--init", "--volume", "$PWD:/workdir", "--workdir", "/workdir",
                   "--label", f"com.buildkite.job-id={number}", "--label", "comparison=buildkite", IMAGE, "/bin/sh", "-e", "-c"]
        line = " ".join(p if p.startswith("$") else shlex.quote(p) for p in command)
        env = {"BUILDKITE": "true", "CI": "true", "BUILDKITE_JOB_ID": number, "BUILDKITE_BUILD_ID": number,
               "BUILDKITE_BUILD_NUMBER": "1", "BUILDKITE_ORGANIZATION_SLUG": "comparison", "BUILDKITE_PIPELINE_SLUG": "empty",
               "BUILDKITE_PIPELINE_PROVIDER": "git", "BUILDKITE_BRANCH": "main", "BUILDKITE_COMMIT": "HEAD",
               "BUILDKITE_REPO": "none", "BUILDKITE_LABEL": "job", "BUILDKITE_AGENT_NAME": "comparison",
               "BUILDKITE_COMMAND": f"{line} {shlex.quote(job.script)}", "BUILDKITE_SCRIPT_PATH": ""}
        return {"id": number, "endpoint": f"http://127.0.0.1:{self.port}/v3", "state": state, "env": env,
                "step": {"command": env["BUILDKITE_COMMAND"]}, "chunks_max_size_bytes": CHUNK_BYTES,
                "token": "job-token", "runnable_at": "2026-01-01T00:00:00Z"}


class Buildkite(Mocked):
    name = "buildkite-agent"
    title = "Buildkite agent"
    binary = "buildkite-agent"
    version_is = r"version ([0-9.]+)"
    backend_kind = Service
    container_filter = "label=comparison=buildkite"
    # Each of its workers pings by itself.
    asks_first = SLOTS

    def settings(self):
        return ("--spawn 4, --skip-checkout; a command that calls `docker run` as its docker plugin does by default; "
                "ping interval 1 s, chunks of 100 KiB, as the mock says")

    def command(self):
        for name in ("builds", "hooks", "plugins"):
            os.makedirs(os.path.join(self.folder, name), exist_ok=True)
        return [self.program(), "start", "--token", "comparison", "--endpoint", f"http://127.0.0.1:{self.backend.port}/v3",
                "--name", "comparison-%spawn", "--spawn", str(SLOTS), "--skip-checkout",
                "--build-path", os.path.join(self.folder, "builds"), "--hooks-path", os.path.join(self.folder, "hooks"),
                "--plugins-path", os.path.join(self.folder, "plugins")]

"""GitLab Runner with its docker executor, and a mock of the part of GitLab's API that a runner uses.

The mock holds a job request until there is a job, for up to 50 seconds, as GitLab Workhorse does by default ("long polling").
"""

import json
import os
import re

from mock import Mock, Mocked
from system import IMAGE, SLOTS, docker

HOLD = 50.0
HELPER_IMAGE = "jobcell-peers/gitlab-helper:19.4.0"
TOKEN = "glrt-comparison0000"


class Coordinator(Mock):
    def answer(self, method, path, headers, body):
        path = path.split("?")[0].removeprefix("/api/v4")
        if (method, path) == ("POST", "/jobs/request"):
            job = self.hand_out(HOLD)
            return (201, self.payload(job), {}) if job else (204, None, {"X-GitLab-Last-Update": str(self.requests)})
        if path == "/runners/verify":
            return 200, {"id": 1, "token": TOKEN, "token_expires_at": None}, {}
        found = re.fullmatch(r"/jobs/(\d+)(/trace)?", path)
        job = found and self.out.get(int(found.group(1)))
        if not job:
            return 404, {"message": "404 Not found"}, {}
        if method == "PATCH" and found.group(2):
            first = int(headers["Content-Range"].split("-")[0])
            if first != len(job.output):
                return 416, {}, {"Range": f"0-{len(job.output)}", "Job-Status": "running"}
            job.output += body
            return 202, {}, {"Range": f"0-{len(job.output)}", "Job-Status": "running"}
        if method == "PUT":
            told = json.loads(body)
            if told["state"] in ("success", "failed"):
                size = (told.get("output") or {}).get("bytesize")
                if size is not None and size != len(job.output):
                    job.notes.append(f"the runner counts {size} bytes of output, {len(job.output)} are here")
                job.finish(told["state"], told.get("failure_reason", ""))
            return 200, {}, {"Job-Status": "running"}
        return 404, {}, {}

    def payload(self, job):
        plain = {"CI_JOB_ID": str(job.number), "CI_PROJECT_ID": "1", "CI_SERVER_URL": f"http://127.0.0.1:{self.port}",
                 "CI_PROJECT_PATH": "comparison/empty", "CI_JOB_TOKEN": "t", "GIT_STRATEGY": "none"}
        return {
            "id": job.number, "token": f"job-{job.number}", "allow_git_fetch": True,
            "job_info": {"name": "job", "stage": "test", "project_id": 1, "project_name": "empty"},
            "git_info": {"repo_url": f"http://127.0.0.1:{self.port}/comparison/empty.git", "ref": "main", "sha": "0" * 40,
                         "before_sha": "0" * 40, "ref_type": "branch", "refspecs": [], "depth": 1},
            "runner_info": {"timeout": 3600},
            "variables": [{"key": k, "value": v, "public": True, "masked": False} for k, v in plain.items()],
            "steps": [{"name": "script", "script": [job.script], "timeout": 3600, "when": "on_success",
                       "allow_failure": False}],
            "image": {"name": IMAGE}, "services": [], "artifacts": [], "cache": [], "credentials": [], "dependencies": [],
            "features": {"trace_sections": True,
                         "failure_reasons": ["unknown_failure", "script_failure", "runner_system_failure",
                                             "job_execution_timeout"]},
        }


class GitLab(Mocked):
    name = "gitlab-runner"
    title = "GitLab Runner"
    binary = "gitlab-runner"
    version_is = r"Version:\s*(\S+)"
    backend_kind = Coordinator
    container_filter = "label=com.gitlab.gitlab-runner.managed=true"
    # In kilobytes; None leaves the default of 4096.
    output_limit = None

    def settings(self):
        return ("docker executor, concurrent 4, request_concurrency 4, pull_policy if-not-present (the default pulls each "
                "time, and there is no registry), GIT_STRATEGY none; job requests held for up to 50 s by the backend")

    def command(self):
        config = os.path.join(self.folder, "config.toml")
        limit = f"  output_limit = {self.output_limit}\n" if self.output_limit else ""
        with open(config, "w") as f:
            f.write(f'concurrent = {SLOTS}\n\n[[runners]]\n  name = "comparison"\n  url = "http://127.0.0.1:{self.backend.port}"\n'
                    f'  token = "{TOKEN}"\n  executor = "docker"\n  request_concurrency = {SLOTS}\n{limit}  [runners.docker]\n'
                    f'    image = "{IMAGE}"\n    pull_policy = ["if-not-present"]\n    helper_image = "{HELPER_IMAGE}"\n')
        return [self.program(), "run", "--config", config, "--working-directory", self.folder]

    def sweep(self):
        left = super().sweep()
        volumes = docker("volume", "ls", "-q", "--filter", "label=com.gitlab.gitlab-runner.managed=true")
        if volumes:
            docker("volume", "rm", *volumes)
        return left

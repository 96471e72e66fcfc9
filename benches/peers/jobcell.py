"""jobcell: `jobcell up` with the backend that is in it, asked over its REST API; for the outage, a server and an agent."""

import http.client
import json
import os
import subprocess
import threading
import time

from system import SLOTS, Job, System, call, docker, free_port, until


class Jobcell(System):
    name = "jobcell"
    binary = "jobcell"

    def __init__(self, folder, programs, apart=False):
        super().__init__(folder, programs)
        self.apart = apart  # Server and agent in two processes: only so can one be away without the other.
        self.port = free_port()
        self.data = os.path.join(self.folder, "data")
        self.agent_data = os.path.join(self.folder, "agent-data") if apart else self.data
        self.key = None
        self.server = None
        self.token = None

    def version(self):
        return subprocess.run([self.program(), "--version"], capture_output=True, text=True).stdout.strip()

    def settings(self):
        return "`jobcell up`, agent.slots 4; nothing else set"

    def environment(self):
        token = {"JOBCELL_JOIN_TOKEN": self.token} if self.token else {}
        return {"JOBCELL_AGENT__SLOTS": str(SLOTS), "JOBCELL_SERVER__LISTEN": f"127.0.0.1:{self.port}", **token}

    def command(self):
        if not self.apart:
            return [self.program(), "up", "--data-dir", self.data]
        return [self.program(), "agent", "--data-dir", self.agent_data, "--backend", f"http://127.0.0.1:{self.port}"]

    def server_up(self):
        self.server = self.spawn([self.program(), "server", "--data-dir", self.data], "server.log")
        until("jobcell server answers", 30, self.answers)

    def server_down(self):
        self.server.kill()
        self.server.wait(10)

    def answers(self):
        try:
            return call(self.port, "GET", "/livez", timeout=2)[0] == 200
        except OSError:
            return False

    def start(self):
        if self.apart and not self.server:
            self.server_up()
            self.read_key()
            status, token = call(self.port, "POST", "/v1/agent-tokens", {"name": "comparison"}, self.auth())
            assert status == 201, token
            self.token = json.loads(token)["token"]
        super().start()

    def stop(self):
        super().stop()
        if self.server and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(30)

    def read_key(self):
        with open(os.path.join(self.data, "admin.key")) as f:
            self.key = f.read().strip()

    def auth(self):
        return {"Authorization": f"Bearer {self.key}"}

    def ready(self):
        try:
            if not self.answers():
                return False
            self.read_key()
            if not self.apart:
                return call(self.port, "GET", "/readyz", timeout=5)[0] == 200
            status, body = call(self.port, "GET", "/v1/agents", None, self.auth(), timeout=5)
            return status == 200 and any(a["state"] == "online" for a in json.loads(body)["agents"])
        except (OSError, FileNotFoundError):
            return False

    def owner(self):
        with open(os.path.join(self.agent_data, "owner")) as f:
            return f.read().strip()

    @property
    def container_filter(self):
        return f"label=jobcell.owner={self.owner()}"

    def sweep(self):
        left = super().sweep()
        volumes = docker("volume", "ls", "-q", "--filter", self.container_filter)
        if volumes:
            docker("volume", "rm", *volumes)
        return left

    def offer(self, script, **spec):
        self.jobs += 1
        job = Job(self.jobs, script)
        job.offered = time.monotonic()
        threading.Thread(target=self.follow, args=(job, {"preset": "bash", "script": script, **spec}), daemon=True).start()
        return job

    def follow(self, job, spec):
        """Submits it and waits for its end, however often the connection breaks."""
        path, method, body = "/v1/jobs?wait=60s", "POST", spec
        head = {**self.auth(), "Idempotency-Key": f"comparison-{os.getpid()}-{id(job)}-{job.number}"}
        while not job.over.is_set():
            try:
                status, answer = call(self.port, method, path, body, head, timeout=90)
            except OSError:
                time.sleep(0.2)
                continue
            if status >= 400:
                job.finish("refused", answer.decode()[:300])
                return
            job.document = json.loads(answer)
            if job.document["phase"] == "ended":
                ending = job.document["ending"]
                offset = job.document["ended_at"] - job.document["submitted_at"]
                claimed = [e["at"] for e in job.document["history"] if e["phase"] == "claimed"]
                job.finish(ending["verdict"], ending["cause"]["code"])
                if claimed:
                    job.handed_out = len(claimed)
                    job.picked = job.ended - (offset - (claimed[0] - job.document["submitted_at"])) / 1000
                return
            path, method, body = f"/v1/jobs/{job.document['id']}?wait=60s", "GET", None

    def collect(self, job):
        following, out, done = 1, bytearray(), False
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not done:
            first = following
            path = f"/v1/jobs/{job.document['id']}/logs?stream=stdout&max_bytes=8388608&from={first}"
            connection.request("GET", path, headers=self.auth())
            answer = connection.getresponse()
            out += answer.read()
            following = int(answer.headers["Jobcell-Next-Seq"])
            done = answer.headers.get("Jobcell-Log-End") == "true" or following == first
        connection.close()
        job.output = out

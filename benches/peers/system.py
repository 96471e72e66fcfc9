"""What every measured system has in common: its process, the jobs that it is offered, what it costs.

Owns: processes that it started, and the bytes that a job's output became. Never touches a container that no measured system
made, and never ends a process by its name.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

IMAGE = "jobcell/bash:1"
SLOTS = 4
TICKS = os.sysconf("SC_CLK_TCK")
# A line of the big output: its number, and letters up to 100 bytes with the newline.
LINE = re.compile(rb"L(\d{10}) x{87}$")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, seconds, check, every=0.05):
    """Waits for a state, not for a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        got = check()
        if got:
            return got
        time.sleep(every)
    raise TimeoutError(f"{what}: not within {seconds} s")


def docker(*args, timeout=60):
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=timeout)
    return done.stdout.split() if done.returncode == 0 else []


class Job:
    """A job as its backend sees it."""

    def __init__(self, number, script):
        self.number = number
        self.script = script
        self.offered = self.picked = self.ended = None  # monotonic seconds
        self.handed_out = 0
        self.status = None  # the final one, in the backend's own word
        self.reason = ""
        self.output = bytearray()
        self.notes = []
        self.over = threading.Event()

    def finish(self, status, reason=""):
        self.ended = time.monotonic()
        self.status, self.reason = status, reason
        self.over.set()

    def text(self):
        return bytes(self.output).decode("utf-8", "replace")


def lines_of(output):
    """Which numbered lines are in an output, and whether they stand in order: (lines, in order, whole).

    What a system puts around a line (times, colours, carriage returns) is no fault; a byte of the line itself is.
    """
    lines, expected, in_order = 0, 1, True
    for line in output.split(b"\n"):
        found = LINE.search(line.rstrip(b"\r"))
        if not found:
            continue
        lines += 1
        in_order = in_order and int(found.group(1)) == expected
        expected += 1
    return lines, in_order


class System:
    """One measured system. A subclass says how it is started, offered a job, and recognised in the engine."""

    name = "?"
    binary = "?"
    # How the containers of this system are found: a filter of `docker ps`.
    container_filter = "label=none"

    def __init__(self, folder, programs):
        self.folder = os.path.join(folder, self.name)
        self.programs = programs
        os.makedirs(self.folder, exist_ok=True)
        self.process = None
        self.others = []
        self.jobs = 0

    def program(self):
        return os.path.join(self.programs, self.binary)

    def version(self):
        raise NotImplementedError

    def settings(self):
        """What is set beyond the defaults, in a sentence."""
        raise NotImplementedError

    def command(self):
        raise NotImplementedError

    def environment(self):
        return {}

    def ready(self):
        """Whether it takes jobs."""
        raise NotImplementedError

    def offer(self, script, **how):
        raise NotImplementedError

    def collect(self, job):
        """Brings a job's output into `job.output`, where it is not there already."""

    def spawn(self, command, log):
        out = open(os.path.join(self.folder, log), "ab")
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder,
                                env={**os.environ, **self.environment()}, start_new_session=True)

    def start(self):
        self.process = self.spawn(self.command(), "agent.log")
        until(f"{self.name} is ready", 60, self.ready)

    def kill9(self):
        """The agent's main process, and nothing else: what an OOM killer does."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        for process in [self.process, *self.others]:
            if process and process.poll() is None:
                process.terminate()
                try:
                    process.wait(45)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)

    def containers(self):
        return set(docker("ps", "-aq", "--no-trunc", "--filter", self.container_filter))

    def sweep(self):
        """Removes what it left in the engine; says how many containers that were."""
        left = self.containers()
        if left:
            docker("rm", "-fv", *left)
        return len(left)

    # --- what it costs

    def tree(self):
        """The process ids of the agent and of all that descend from it."""
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as f:
                        children.setdefault(int(f.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
                except OSError:
                    pass
        found, todo = [], [p.pid for p in [self.process, *self.others] if p and p.poll() is None]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += children.get(pid, [])
        return found

    def cpu(self):
        """Processor seconds of the tree so far, those of children that have ended included."""
        total = 0
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/stat") as f:
                    total += sum(int(x) for x in f.read().rsplit(")", 1)[1].split()[11:15])
            except OSError:
                pass
        return total / TICKS

    def memory(self):
        """Resident memory of the tree now, in MB."""
        total = 0
        for pid in self.tree():
            try:
                with open(f"/proc/{pid}/status") as f:
                    total += sum(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))
            except OSError:
                pass
        return total * 1024 / 1e6


def machine_busy():
    """Processor seconds that the whole machine has worked, less this program's own (driver and mock backends)."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, soft, *_ = (int(x) for x in f.readline().split()[1:])
    own = os.times()
    return (user + nice + system + irq + soft) / TICKS - own.user - own.system


def call(port, method, path, body=None, headers=None, timeout=120):
    """One HTTP request to loopback: (status, bytes)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = json.dumps(body).encode() if body is not None else None
        head = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, data, head)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()

#!/usr/bin/env python3
"""Measures jobcell and its peers with the same jobs, in the same image, on the same engine.

    compare.py --programs DIR --jobcell FILE --results FILE MEASURE...

MEASURE is one or more of: latency, throughput, output, kill, outage, holds; or report, which prints the tables of what the
results file has so far. A peer whose program is not in DIR is left out, and the report says so. Each measure starts the
systems anew and removes what they leave in the engine. Each takes two to four minutes with everything.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from buildkite import Buildkite
from gitlab import GitLab
from jobcell import Jobcell
from report import report
from system import IMAGE, SLOTS, Job, System, docker, lines_of, machine_busy

LINES = 2_684_354  # of 100 bytes: 256 MiB less 56 bytes
FLOOD = f"seq -f 'L%010.0f {'x' * 87}' 1 {LINES}"
TICKS = "for i in $(seq 1 25); do echo tick $i; sleep 1; done"
SETTLE = 1.5  # for what a system does behind a job's end, such as removing its container; its cost is the job's


class Plain(System):
    """`docker run` by itself, with nothing around it: what the engine and its client cost."""

    name = "docker run"
    container_filter = "label=comparison=plain"

    def version(self):
        return "Docker client " + docker("version", "--format", "{{.Client.Version}}")[0]

    def settings(self):
        return "`docker run --rm`, its output read through a pipe"

    def start(self):
        pass

    def stop(self):
        pass

    def offer(self, script, **_):
        job = Job(0, script)
        job.offered = job.picked = time.monotonic()

        def run():
            command = ["docker", "run", "--rm", "--label", "comparison=plain", IMAGE, "/bin/sh", "-c", script]
            done = subprocess.run(command, stdout=subprocess.PIPE)
            job.output += done.stdout
            job.finish(f"exit {done.returncode}")

        threading.Thread(target=run, daemon=True).start()
        return job


def good(job):
    return job.status in ("success", "succeeded", "exit 0")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def spread(values):
    return {"n": len(values), "p50": percentile(values, 0.5), "p95": percentile(values, 0.95)} if values else None


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Running:
    """Systems that are up for one measure, and gone behind it whatever happens."""

    def __init__(self, systems):
        self.systems = systems

    def __enter__(self):
        try:
            for system in self.systems:
                say(f"starting {system.name}")
                system.start()
        except BaseException:
            self.__exit__()
            raise
        return self.systems

    def __exit__(self, *_):
        for system in self.systems:
            try:
                system.stop()
            finally:
                try:
                    left = system.sweep()
                except FileNotFoundError:  # It never came so far as to have a name in the engine.
                    left = 0
                if left:
                    say(f"{system.name} left {left} containers; removed")


def latency(systems, rounds):
    """One empty job at a time, the systems in turn; memory before the first and behind the last."""
    results = {s.name: {"total": [], "picked": [], "run": [], "cpu": [], "machine": [], "failed": 0} for s in systems}
    with Running(systems):
        time.sleep(5)
        for system in systems:
            results[system.name]["idle_mb"] = system.memory() if system.process else None
        for turn in range(rounds + 1):  # The first is a warm-up.
            for system in systems:
                cpu, busy = system.cpu(), machine_busy()
                job = system.offer("true")
                if not job.over.wait(120) or not good(job):
                    results[system.name]["failed"] += 1
                    say(f"{system.name}: {job.status} {job.reason} {job.text()[-300:]}")
                    continue
                time.sleep(SETTLE)
                if turn:
                    kept = results[system.name]
                    kept["total"].append(job.ended - job.offered)
                    if job.picked:
                        kept["picked"].append(job.picked - job.offered)
                        kept["run"].append(job.ended - job.picked)
                    kept["cpu"].append(system.cpu() - cpu)
                    kept["machine"].append(machine_busy() - busy)
        for system in systems:
            results[system.name]["after_mb"] = system.memory() if system.process else None
    for kept in results.values():
        kept["raw"] = {k: kept[k] for k in ("total", "picked", "run", "cpu", "machine")}
        for key in ("total", "picked", "run"):
            kept[key] = spread(kept[key])
        for key in ("cpu", "machine"):  # Ticks are 10 ms: only the mean of many jobs means something.
            kept[key] = sum(kept[key]) / len(kept[key]) if kept[key] else None
    return results


def throughput(systems, rounds, jobs=20):
    """Twenty empty jobs at once, four slots."""
    results = {s.name: {"rates": [], "failed": 0} for s in systems}
    with Running(systems):
        for system in systems:
            system.offer("true").over.wait(120)
        for _ in range(rounds):
            for system in systems:
                begin = time.monotonic()
                offered = [system.offer("true") for _ in range(jobs)]
                for job in offered:
                    job.over.wait(240)
                results[system.name]["failed"] += sum(not good(job) for job in offered)
                ends = [job.ended for job in offered if job.ended]
                if len(ends) == jobs:
                    results[system.name]["rates"].append(jobs / (max(ends) - begin))
                time.sleep(SETTLE)
    return results


def output(systems, _):
    """256 MiB of numbered lines: which of them the backend has, and when it has the end."""
    results = {}
    for system in systems:
        with Running([system]):
            system.offer("true").over.wait(120)
            cpu, busy = system.cpu(), machine_busy()
            job = system.offer(FLOOD)
            ended = job.over.wait(200)
            cost, worked = system.cpu() - cpu, machine_busy() - busy
            peak = system.memory() if system.process else None
            if ended:
                system.collect(job)
            lines, in_order = lines_of(job.output)
            results[system.name] = {
                "status": job.status, "reason": job.reason, "seconds": job.ended - job.offered if ended else None,
                "lines": lines, "of": LINES, "in_order": in_order, "bytes": len(job.output), "cpu": cost, "machine": worked,
                "after_mb": peak, "notes": job.notes, "tail": job.text()[-200:] if lines < LINES else "",
            }
            say(f"{system.name}: {json.dumps(results[system.name])}")
    return results


def ticks(job):
    return [int(n) for n in re.findall(r"tick (\d+)", job.text())]


def wait_for_container(system, before, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not system.containers() - before:
        time.sleep(0.1)


def side_by_side(systems, one):
    """What is no matter of speed is done with all systems at the same time."""
    results = {}

    def run(system):
        try:
            with Running([system]):
                results[system.name] = one(system)
            say(f"{system.name}: {json.dumps(results[system.name])}")
        except (OSError, TimeoutError, AssertionError) as error:
            say(f"{system.name} could not be measured: {error}")

    threads = [threading.Thread(target=run, args=(s,)) for s in systems if not isinstance(s, Plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def kill(systems, _):
    """kill -9 of the agent while a job of 25 seconds runs; 2 seconds later it is started again."""

    def one(system):
        before = system.containers()
        job = system.offer(TICKS)
        wait_for_container(system, before)
        time.sleep(6)
        of_job = system.containers() - before
        system.kill9()
        died = time.monotonic()
        fate = {"there": died, "running": died}

        def watch():
            while time.monotonic() < died + 80:
                for state, option in (("there", "-aq"), ("running", "-q")):
                    if of_job & set(docker("ps", option, "--no-trunc", "--filter", system.container_filter)):
                        fate[state] = time.monotonic()
                time.sleep(0.5)

        threading.Thread(target=watch, daemon=True).start()
        time.sleep(2)
        system.start()
        back = time.monotonic()
        known = job.over.wait(60)
        # What goes on without its agent has the time to end.
        time.sleep(5 if known else max(0.0, died + 75 - time.monotonic()))
        lasted = {"container_ran_for": fate["running"] - died, "container_there_for": fate["there"] - died}
        if known and job.status != "refused":
            system.collect(job)
        seen, left = ticks(job), system.containers()
        running = docker("ps", "-q", "--no-trunc", "--filter", system.container_filter)
        return {
            "started_again_after": back - died, "status": job.status, "reason": job.reason,
            "known_after": job.ended - died if known else None, "times_run": job.handed_out,
            "ticks": len(seen), "last_tick": max(seen, default=0), "in_order": seen == list(range(1, len(seen) + 1)),
            "containers_left": len(left), "running_left": len(set(running)), **lasted,
            "takes_next_job": system.offer("true").over.wait(60),
        }

    return side_by_side(systems, one)


def outage(systems, _):
    """The backend is away from some seconds before a job's end until 30 seconds behind it."""

    def one(system):
        before = system.containers()
        job = system.offer("echo first; sleep 10; echo last")
        wait_for_container(system, before)
        time.sleep(7)
        apart = isinstance(system, Jobcell)
        down, up = (system.server_down, system.server_up) if apart else (system.backend.down, system.backend.up)
        down()
        time.sleep(33)
        up()
        back = time.monotonic()
        known = job.over.wait(180)
        if known:
            system.collect(job)
        return {
            "status": job.status, "reason": job.reason, "known_after_return": job.ended - back if known else None,
            "first": "first" in job.text(), "last": "last" in job.text(), "notes": job.notes, "times_run": job.handed_out,
        }

    return side_by_side(systems, one)


PROBE = r"""
echo "P uid=$(id -u)"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | sed 's/:[[:space:]]*/=/; s/^/P /'
if (: > /probe-of-root) 2>/dev/null; then echo P root=writable; else echo P root=read-only; fi
echo "P interfaces=$(ls /sys/class/net 2>/dev/null | tr '\n' ' ')"
if grep -q '^[^[:space:]]*[[:space:]]00000000' /proc/net/route 2>/dev/null; then echo P route=yes; else echo P route=no; fi
if [ -S /var/run/docker.sock ]; then echo P socket=yes; else echo P socket=no; fi
sleep 4
"""


def holds(systems, _):
    """What holds a job by default: read in the job, and asked of the engine while it runs."""
    results = {}
    for system in systems:
        with Running([system]):
            before = set(docker("ps", "-q", "--no-trunc"))
            seen = {}
            job = system.offer(PROBE)
            while not job.over.wait(0.3):
                for one in set(docker("ps", "-q", "--no-trunc", "--filter", system.container_filter)) - before:
                    if one not in seen:
                        done = subprocess.run(["docker", "inspect", one], capture_output=True, text=True)
                        if done.returncode == 0:
                            seen[one] = json.loads(done.stdout)[0]
            system.collect(job)
            inside = dict(re.findall(r"P (\w+)=([^\r\n]*)", job.text()))
            outside = {}
            for container in seen.values():
                if "helper" in container["Config"]["Image"] or "predefined" in container["Name"]:
                    continue
                host = container["HostConfig"]
                outside = {"pids": host["PidsLimit"], "memory": host["Memory"], "cpus": host["NanoCpus"] or host["CpuQuota"],
                           "read_only": host["ReadonlyRootfs"], "network": host["NetworkMode"],
                           "privileged": host["Privileged"], "cap_drop": host["CapDrop"],
                           "security": [s[:60] for s in host["SecurityOpt"] or []],
                           "binds": len(host["Binds"] or [])}
            results[system.name] = {"status": job.status, "inside": inside, "outside": outside}
            say(f"{system.name}: {json.dumps(results[system.name])}")
    return results


MEASURES = {"latency": (latency, 12), "throughput": (throughput, 2), "output": (output, 1), "kill": (kill, 1),
            "outage": (outage, 1), "holds": (holds, 1)}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--programs", default="target/peers/bin")
    ask.add_argument("--jobcell", default="target/release/jobcell")
    ask.add_argument("--results", default="target/peers/results.json")
    ask.add_argument("--rounds", type=int)
    ask.add_argument("--only", action="append", help="one system by its name; may be said again")
    ask.add_argument("measures", nargs="+", choices=[*MEASURES, "report"])
    said = ask.parse_args()
    kept = json.load(open(said.results)) if os.path.exists(said.results) else {}

    for measure in said.measures:
        if measure == "report":
            print(report(kept))
            continue
        folder = tempfile.mkdtemp(prefix="jobcell-peers-")
        programs = os.path.join(folder, "bin")
        os.makedirs(programs)
        os.symlink(os.path.abspath(said.jobcell), os.path.join(programs, "jobcell"))
        absent = []
        for name in (GitLab.binary, Buildkite.binary):
            if os.path.exists(os.path.join(said.programs, name)):
                os.symlink(os.path.abspath(os.path.join(said.programs, name)), os.path.join(programs, name))
            else:
                absent.append(name)
        systems = [Jobcell(folder, programs, apart=measure == "outage"), Plain(folder, programs)]
        systems += [kind(folder, programs) for kind in (GitLab, Buildkite) if kind.binary not in absent]
        if measure == "output" and GitLab.binary not in absent:
            raised = GitLab(folder, programs)
            raised.name, raised.output_limit = "gitlab-runner, output_limit raised", 1 << 20
            raised.folder = os.path.join(folder, "gitlab-raised")
            os.makedirs(raised.folder)
            systems.append(raised)
        if said.only:
            systems = [s for s in systems if s.name in said.only]
        function, rounds = MEASURES[measure]
        before = kept.get(measure, {}).get("systems", {})
        results = function(systems, said.rounds or rounds)
        kept[measure] = {"at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "systems": {**before, **results}}
        kept.setdefault("versions", {}).update({s.name: s.version() for s in systems})
        kept.setdefault("settings", {}).update({s.name: s.settings() for s in systems})
        kept["absent"] = absent
        kept["machine"] = {"cores": os.cpu_count(), "kernel": platform.release(), "slots": SLOTS,
                           "engine": docker("version", "--format", "{{.Server.Version}}")[0]}
        with open(said.results, "w") as f:
            json.dump(kept, f, indent=1)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""The tables of a results file, as Markdown. Says what was measured; compares nothing by itself."""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def pair(value, unit="s", digits=2):
    return f"{value['p50']:.{digits}f} / {value['p95']:.{digits}f} {unit}" if value else "–"


def number(value, unit, digits=1):
    return f"{value:.{digits}f} {unit}" if value is not None else "–"


def report(kept):
    parts = [f"Machine: {kept.get('machine')}", ""]
    parts += [f"- {name}: {version}; {kept['settings'][name]}" for name, version in kept.get("versions", {}).items()]
    parts += [f"- {name}: not built, not measured" for name in kept.get("absent", [])]
    for measure in ("latency", "throughput", "output", "kill", "outage", "holds"):
        if measure in kept:
            systems = kept[measure]["systems"]
            parts += ["", f"## {measure} ({kept[measure]['at']})", "", globals()[measure](systems)]
    return "\n".join(parts)


def latency(systems):
    return table(
        ["system", "n", "offered → final status, p50 / p95", "offered → picked up", "picked up → final status",
         "CPU of the agent a job", "CPU of the machine a job", "memory idle", "memory after"],
        [[name, s["total"]["n"] if s["total"] else 0, pair(s["total"]), pair(s["picked"]), pair(s["run"]),
          number(s["cpu"] * 1000 if s["cpu"] is not None and s["idle_mb"] is not None else None, "ms", 0),
          number(s["machine"] * 1000 if s["machine"] is not None else None, "ms", 0),
          number(s["idle_mb"], "MB"), number(s["after_mb"], "MB")] for name, s in systems.items()])


def throughput(systems):
    return table(["system", "jobs a second, each round", "failed"],
                 [[name, ", ".join(f"{r:.2f}" for r in s["rates"]), s["failed"]] for name, s in systems.items()])


def output(systems):
    return table(["system", "status", "lines that arrived", "in order", "seconds", "CPU of the agent", "memory at the end", "notes"],
                 [[name, f"{s['status']} {s['reason']}".strip(), f"{s['lines']:,} of {s['of']:,}", "yes" if s["in_order"] else "no",
                   number(s["seconds"], "s"), number(s["cpu"], "s"), number(s["after_mb"], "MB"), "; ".join(s["notes"])]
                  for name, s in systems.items()])


def kill(systems):
    return table(["system", "final status", "known after", "times handed out", "ticks stored of 25", "its container ran on for", "containers left, running", "takes the next job"],
                 [[name, f"{s['status']} {s['reason']}".strip(), number(s["known_after"], "s"), s["times_run"],
                   f"{s['ticks']} (last {s['last_tick']})", number(s["container_ran_for"], "s", 0), f"{s['containers_left']}, {s['running_left']}",
                   "yes" if s["takes_next_job"] else "no"] for name, s in systems.items()])


def outage(systems):
    return table(["system", "final status", "known after the return", "first line, last line", "times handed out", "notes"],
                 [[name, f"{s['status']} {s['reason']}".strip(), number(s["known_after_return"], "s"),
                   f"{'yes' if s['first'] else 'no'}, {'yes' if s['last'] else 'no'}", s["times_run"], "; ".join(s["notes"])]
                  for name, s in systems.items()])


def holds(systems):
    inside = ["uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "root", "interfaces", "route", "socket"]
    outside = ["pids", "memory", "cpus", "network", "privileged", "cap_drop", "security", "binds"]
    rows = [[key, *(s["inside"].get(key, "?") for s in systems.values())] for key in inside]
    rows += [[key, *(s["outside"].get(key, "?") for s in systems.values())] for key in outside]
    return table(["", *systems], rows)

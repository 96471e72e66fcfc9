//! The figures of the sealed cell: what hardening costs, how long the receipt takes, what a neighbour notices of a hostile job. A report,
//! not a test: it exits with an error only when something is wrong, never because a number is.
//!
//! `cargo bench --bench sealed -- [--short] [NAME…]` with the names hardening, receipt, neighbour.

mod asked;
#[allow(dead_code, reason = "shared with the other benches")]
mod fleet;
#[allow(dead_code, reason = "shared with the other benches")]
mod raw;

use asked::Asked;
use fleet::{Member, Outcome};
use raw::Raw;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

const SECCOMP: &str = include_str!("../seccomp/default.json");
/// The same work again and again, and how long it took each time, in microseconds.
const NEIGHBOUR: &str = "import time
for _ in range(TIMES):
    begun = time.perf_counter_ns()
    sum(range(SIZE * 200_000))
    open('/tmp/x', 'wb').write(bytes(SIZE << 16))
    print((time.perf_counter_ns() - begun) // 1000)
";

/// The one that is hostile by nothing but its appetite. The kernel changes between those that share a core at its tick, every 4 ms at 250 Hz:
/// work that takes less than that shows the tick, and longer work what the neighbour loses.
const LOOPS: &str = "eight busy loops";
const LONGER: usize = 10;

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    let (short, wanted) = (asked.short, |name: &str| asked.wants(name));
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "p50 / p95", "reference", "ratio");
    if wanted("hardening") {
        hardening(if short { 3 } else { 30 }).await?;
    }
    if wanted("receipt") {
        receipt(if short { 3 } else { 30 }).await?;
    }
    if wanted("neighbour") {
        neighbour(if short { 100 } else { 1000 }).await?;
    }
    Ok(())
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (part * (values.len() - 1) as f64).round() as usize;
    values[at]
}

fn row(name: &str, value: f64, reference: Option<f64>, goal: &str) {
    let (reference, ratio) = match reference {
        Some(reference) => (format!("{reference:.1}"), format!("{:.2}", value / reference)),
        None => (String::new(), String::new()),
    };
    println!("{name:<58} {value:>10.1} {reference:>10} {ratio:>6}   {goal}");
}

/// A hardened container with our profile and tmpfs, against one with nothing of it, in turns.
async fn hardening(times: usize) -> Outcome<()> {
    let raw = Raw::connect().await?;
    let profile: Value = serde_json::from_str(SECCOMP)?;
    let profile = profile.to_string();
    let (mut sealed, mut open) = (Vec::new(), Vec::new());
    let milliseconds = |span: Duration| span.as_secs_f64() * 1e3;
    for _ in 0..times {
        let mut host = raw::hardened(Some(&profile));
        let tmpfs = |exec: &str| format!("rw,nosuid,nodev,{exec},size=64m,nr_inodes=10000,mode=0700,uid=1000,gid=1000");
        host.tmpfs =
            Some(HashMap::from([("/tmp".to_owned(), tmpfs("noexec")), ("/workspace".to_owned(), tmpfs("exec"))]));
        sealed.push(milliseconds(raw.once_with("1000:1000", host).await?.exit_known));
        open.push(milliseconds(raw.once_with("0:0", raw::plain()).await?.exit_known));
    }
    row(
        "a container, all hardening -> exit known, p50 (ms)",
        quantile(&mut sealed, 0.5),
        Some(quantile(&mut open, 0.5)),
        "<= 1.15 x",
    );
    Ok(())
}

/// As the warden measures it: read, tried and noted, in each cell.
async fn receipt(times: usize) -> Outcome<()> {
    let up = Member::up("docker: {shared: true}\n").await?;
    let mut spans = Vec::new();
    for _ in 0..times {
        let id = up.submit(&json!({"preset": "bash", "command": ["true"]})).await?;
        let job = up.ended(&id).await?;
        let facts = job["receipt"].as_array().ok_or("no receipt")?;
        let span =
            facts.iter().find(|fact| fact[0] == "receipt_us").and_then(|fact| fact[1].as_str()).ok_or("no span")?;
        spans.push(span.parse::<f64>()? / 1e3);
    }
    row("receipt, read and tried inside, p50 (ms)", quantile(&mut spans, 0.5), None, "<= 1 ms");
    row("receipt, read and tried inside, p95 (ms)", quantile(&mut spans, 0.95), None, "");
    up.stop().await
}

/// The same work alone, and beside each hostile job.
async fn neighbour(times: usize) -> Outcome<()> {
    let up = Member::up("agent: {slots: 2, grace: 1s}\ndocker: {shared: true}\n").await?;
    let mut alone = measured(&up, times, 1).await?;
    let alone = quantile(&mut alone, 0.95);
    row("work of a job alone, p95 (us)", alone, None, "");
    let mut longer = measured(&up, times / 5, LONGER).await?;
    let longer = quantile(&mut longer, 0.95);
    row("ten times that work alone, p95 (us)", longer, None, "");
    let bash = |script: &str| json!({"preset": "bash", "script": script, "timeout": "10m"});
    let hostile = [
        ("a fork bomb", bash("b() { b | b & }; while :; do b; done 2> /dev/null")),
        (LOOPS, bash("for i in {1..8}; do (while :; do :; done) & done; wait")),
        ("memory used up, again and again", bash("while :; do (tail /dev/zero) 2> /dev/null; done")),
        (
            "a full workspace, again and again",
            bash("while :; do cat /dev/zero > /workspace/x; rm /workspace/x; done 2> /dev/null"),
        ),
        (
            "files without end",
            bash("while :; do for i in {1..999}; do : > /workspace/$i; done; rm -rf /workspace/[0-9]*; done"),
        ),
        ("a flood of output", bash("while :; do printf '%065536d'; done")),
        ("sync and fsync without end", bash("while :; do sync; sync -f /etc/hosts; sync /workspace; done")),
    ];
    for (name, spec) in hostile {
        let id = up.submit(&spec).await?;
        up.phase(&id, "running").await?;
        let mut beside = measured(&up, times, 1).await?;
        row(&format!("beside {name}, p95 (us)"), quantile(&mut beside, 0.95), Some(alone), "< 2 x");
        if name == LOOPS {
            let mut beside = measured(&up, times / 5, LONGER).await?;
            row(
                &format!("ten times that work beside {name}, p95 (us)"),
                quantile(&mut beside, 0.95),
                Some(longer),
                "< 2 x",
            );
        }
        up.cancel(&id, false).await?;
        up.ended(&id).await?;
    }
    up.stop().await
}

async fn measured(up: &Member, times: usize, size: usize) -> Outcome<Vec<f64>> {
    let script = NEIGHBOUR.replace("TIMES", &times.to_string()).replace("SIZE", &size.to_string());
    let id = up.submit(&json!({"preset": "python", "script": script})).await?;
    let job = up.ended(&id).await?;
    if job["ending"]["verdict"] != "succeeded" {
        return Err(format!("the neighbour failed: {}", job["ending"]).into());
    }
    let text = String::from_utf8(up.stream(&id, "stdout").await?)?;
    Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
}

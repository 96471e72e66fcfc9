//! The figures of "nothing lost": what durability costs, and how long it takes to be back. A report, not a test: it exits with an error
//! only when something is wrong (a job failed, a byte is missing), never because a number is.
//!
//! `cargo bench --bench recovery -- [--short] [NAME…]` with the names syncs, adopt, kills, backlog, handout, cancel.

mod asked;
mod fleet;

use asked::Asked;
use fleet::{Member, Outcome, lines_with, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    let (short, wanted) = (asked.short, |name: &str| asked.wants(name));
    println!("{:<62} {:>10}   goal", "figure", "jobcell");
    if wanted("syncs") {
        syncs(if short { 5 } else { 50 }).await?;
    }
    if wanted("adopt") {
        adopt(if short { 6 } else { 100 }).await?;
    }
    if wanted("kills") {
        kills(if short { 3 } else { 100 }).await?;
    }
    if wanted("backlog") {
        backlog(if short { 4 } else { 40 }, if short { 1 } else { 20 }).await?;
    }
    if wanted("handout") {
        handout().await?;
    }
    if wanted("cancel") {
        cancel(if short { 3 } else { 30 }).await?;
    }
    Ok(())
}

fn row(name: &str, value: f64, goal: &str) {
    println!("{name:<62} {value:>10.2}   {goal}");
}

/// Little of the host, so that a hundred fit.
fn small(script: &str) -> Value {
    let resources = json!({"cpu": 0.05, "memory": "16MiB", "pids": 16});
    json!({"preset": "bash", "script": script, "resources": resources, "timeout": "1h"})
}

fn many(slots: usize) -> String {
    format!("agent: {{slots: {slots}, cpu: 1000, memory: 1000GiB}}\ndocker: {{shared: true}}\n")
}

/// Calls of fsync and fdatasync, one job after the other, and several at once.
async fn syncs(jobs: usize) -> Outcome<()> {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        println!("(strace is not installed: the calls of fdatasync are not counted)");
        return Ok(());
    }
    let up = Member::up_traced(&many(8)).await?;
    let job = json!({"preset": "bash", "command": ["true"]});
    up.run(&job).await?;
    for (what, at_once) in [("one after the other", 1), ("eight at once", 8)] {
        let before = up.syncs()?;
        let mut ids = Vec::new();
        for number in 0..jobs * at_once {
            ids.push(up.submit(&job).await?);
            if ids.len() == at_once || number + 1 == jobs * at_once {
                for id in ids.drain(..) {
                    up.succeeded(&id).await?;
                }
            }
        }
        let after = up.syncs()?;
        let each = |file: &str| {
            let count = |counts: &fleet::Syncs| counts.get(file).copied().unwrap_or_default();
            (count(&after) - count(&before)) as f64 / (jobs * at_once) as f64
        };
        row(&format!("syncs of the journal for a job, {what}"), each("journal"), "<= 1");
        row(&format!("syncs of the queue for a job, {what}"), each("queue"), "<= 3");
        row(&format!("syncs of the log for a job, {what}"), each("log"), "");
    }
    up.stop().await
}

/// A restart while so many jobs run.
async fn adopt(jobs: usize) -> Outcome<()> {
    let mut up = Member::up(&many(jobs)).await?;
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(up.submit(&small("for ((i = 1; ; i++)); do echo $i; sleep 0.5; done")).await?);
    }
    for id in &ids {
        up.phase(id, "running").await?;
    }
    up.kill()?;
    let began = Instant::now();
    up.revive()?;
    let log = up.log_path();
    wait_for("all cells", || (lines_with(&log, "its cell runs") >= jobs).then_some(())).await?;
    row(
        &format!("kill -9 and start: {jobs} running jobs adopted (s)"),
        began.elapsed().as_secs_f64(),
        "<= 2 s for 100",
    );
    up.endpoint().await?;
    for id in &ids {
        up.cancel(id, true).await?;
    }
    for id in &ids {
        let job = up.ended(id).await?;
        let text = up.output(id).await?;
        let count = text.iter().filter(|byte| **byte == b'\n').count();
        let wanted: String = (1..=count).map(|number| format!("{number}\n")).collect();
        if job["log"]["complete"] != true || text != wanted.as_bytes() || job["attempt"] != 1 {
            return Err(format!("a log has a hole: {job}").into());
        }
    }
    up.stop().await
}

/// kill -9 of the agent while a job writes, again and again.
async fn kills(times: usize) -> Outcome<()> {
    const BLOCK: usize = 64 << 10;
    let mut up = Member::up(&many(2)).await?;
    // It writes until it is told by a file that there were kills enough.
    let script = "import os, signal, time\nblock = b''.join(b'%07d\\n' % n for n in range(8192))\nwrote = 0\nended = []\nsignal.signal(signal.SIGTERM, lambda *_: ended.append(1))\nwhile not ended:\n    left = block\n    while left:\n        left = left[os.write(1, left):]\n    wrote += 1\n    time.sleep(0.002)\nos.write(2, b'%d' % wrote)\n";
    let id = up.submit(&json!({"preset": "python", "script": script, "timeout": "1h"})).await?;
    up.phase(&id, "running").await?;
    let mut size = 0;
    let began = Instant::now();
    for _ in 0..times {
        // More has come since the last one.
        let enough = size + 16 * BLOCK as u64;
        while size < enough {
            size = up.log_bytes();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        up.kill()?;
        up.revive()?;
    }
    let span = began.elapsed();
    up.endpoint().await?;
    let job = up.job(&id).await?;
    if !job["ending"].is_null() {
        return Err(format!("it ended early: {}", job["ending"]).into());
    }
    up.cancel(&id, false).await?;
    let job = up.ended(&id).await?;
    let blocks: usize = String::from_utf8(up.stream(&id, "stderr").await?)?.parse()?;
    let block: Vec<u8> = (0..8192).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
    let mut hash = Sha256::new();
    for _ in 0..blocks {
        hash.update(&block);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if job["log"]["stdout"]["sha256"] != hex.as_str() || job["log"]["complete"] != true || job["attempt"] != 1 {
        return Err(format!("not what was written: {} blocks, {}", blocks, job["log"]).into());
    }
    row(
        &format!("kill -9 in mid-flood, {times} times, SHA-256 as written (MB)"),
        (blocks * BLOCK) as f64 / 1e6,
        "each byte",
    );
    row("each of them: killed, started, output goes on (s)", span.as_secs_f64() / times as f64, "");
    up.stop().await
}

/// A server that comes back to ends and output that waited for it.
async fn backlog(jobs: usize, megabytes: usize) -> Outcome<()> {
    let mut server = Member::server().await?;
    let agent = server.agent("one", &many(jobs)).await?;
    let script = format!("echo begun; sleep 6; head -c {megabytes}000000 /dev/zero | tr '\\0' x");
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(server.submit(&small(&script)).await?);
    }
    for id in &ids {
        server.phase(id, "running").await?;
    }
    server.kill()?;
    let log = agent.log_path();
    wait_for("all ends", || (lines_with(&log, "attempt ended") >= jobs).then_some(())).await?;
    let began = Instant::now();
    server.revive()?;
    server.endpoint().await?;
    for id in &ids {
        let job = server.ended(id).await?;
        if job["log"]["stdout"]["bytes"] != megabytes * 1_000_000 + 6 || job["log"]["complete"] != true {
            return Err(format!("output is missing: {job}").into());
        }
    }
    let what = format!("{jobs} ends and {} MB of output delivered to a server that is back (s)", jobs * megabytes);
    row(&what, began.elapsed().as_secs_f64(), "<= 60 s");
    agent.stop().await?;
    server.stop().await
}

/// From the death of an agent to its job's start at another one.
async fn handout() -> Outcome<()> {
    let server = Member::server().await?;
    let mut one = server.agent("one", &many(2)).await?;
    let mut spec = small("echo begun; sleep 300");
    spec["lost_after"] = json!("10s");
    let id = server.submit(&spec).await?;
    server.phase(&id, "running").await?;
    let two = server.agent("two", &many(2)).await?;
    one.kill()?;
    let began = Instant::now();
    loop {
        let job = server.job(&id).await?;
        if job["attempt"] == 2 && job["phase"] == "running" {
            break;
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(format!("it is not handed out: {job}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    row("lost agent's job runs at another one, beyond lost_after (s)", began.elapsed().as_secs_f64() - 10.0, "<= 10 s");
    server.cancel(&id, true).await?;
    server.ended(&id).await?;
    // Its cell is cleaned up by its own next start.
    one.revive()?;
    one.settled().await?;
    one.stop().await?;
    two.stop().await?;
    server.stop().await
}

/// From the cancel of a job that runs at an agent elsewhere to its end at the server.
async fn cancel(times: usize) -> Outcome<()> {
    let server = Member::server().await?;
    let agent = server.agent("one", &many(2)).await?;
    let mut spans = Vec::new();
    for _ in 0..times {
        let id = server.submit(&small("echo begun; sleep 300")).await?;
        server.phase(&id, "running").await?;
        let began = Instant::now();
        server.cancel(&id, false).await?;
        let job = server.ended(&id).await?;
        spans.push(began.elapsed().as_secs_f64() * 1e3);
        if job["ending"]["verdict"] != "canceled" {
            return Err(job["ending"].to_string().into());
        }
    }
    spans.sort_by(f64::total_cmp);
    for percent in [50, 95] {
        let at = (spans.len() * percent / 100).min(spans.len() - 1);
        row(&format!("cancel of a job elsewhere -> its end, p{percent} (ms)"), spans[at], "< 1000 ms");
    }
    agent.stop().await?;
    server.stop().await
}

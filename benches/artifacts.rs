//! The figure of what jobs give back: files through the wire into the store, and the memory that it takes. A report, not a test: it exits with an
//! error only when something is wrong, never because a number is.
//!
//! `cargo bench --bench artifacts -- [--short] [NAME…]` with the names rate, and large: one file of 10 GiB for the memory, for which the disk needs
//! the room, and which is fetched only when it is named.

#[allow(dead_code, reason = "shared with the other benches")]
mod asked;
#[allow(dead_code, reason = "shared with the other benches")]
mod fleet;

use asked::Asked;
use fleet::{Member, Outcome};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::time::Instant;

const MIB: u64 = 1 << 20;

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    let (bytes, times) = if asked.short { (16 * MIB, 1) } else { (1024 * MIB, 3) };
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "measured", "reference", "ratio");
    let settings = "agent: {memory: 1TiB}\ndocker: {shared: true}\nblobs: {max_blob: 16GiB, max_bytes: 32GiB}\n\
        artifacts: {max_size: 16GiB, max_total: 16GiB, quota: 24GiB, timeout: 30m}\n";
    let up = Member::up(settings).await?;
    // Everything has been used once.
    fetch(&up, MIB).await?;
    let before = up.memory("VmRSS")?;
    if asked.is_named("large") {
        let rate = fetch(&up, 10 * 1024 * MIB).await?;
        row("a file of 10 GiB -> kept, SHA-256 checked (MB/s)", rate, None, "");
        row("memory growth of the agent meanwhile (MB)", (up.memory("VmHWM")? - before) / 1e6, None, "<= 64 MB");
    }
    if !asked.wants("rate") {
        return up.stop().await;
    }
    let (mut fetched, mut stored) = (Vec::new(), Vec::new());
    for _ in 0..times {
        fetched.push(fetch(&up, bytes).await?);
        stored.push(reference(bytes)?);
    }
    let (fetched, stored) = (middle(&mut fetched), middle(&mut stored));
    row("a file of a job -> kept, SHA-256 checked (MB/s)", fetched, Some(stored), ">= 200 MB/s");
    row("memory growth of the agent meanwhile (MB)", (up.memory("VmHWM")? - before) / 1e6, None, "<= 64 MB");
    up.stop().await
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, value: f64, reference: Option<f64>, goal: &str) {
    let (reference, ratio) = match reference {
        Some(reference) => (format!("{reference:.1}"), format!("{:.2}", value / reference)),
        None => (String::new(), String::new()),
    };
    println!("{name:<58} {value:>10.1} {reference:>10} {ratio:>6}   {goal}");
}

/// Megabytes in a second, from the job's own end to its report.
async fn fetch(up: &Member, bytes: u64) -> Outcome<f64> {
    let disk = format!("{}MiB", bytes / MIB + 8);
    // Other bytes each time: what is there already would not be stored again.
    let rest = match bytes {
        // A hole: it is read like any other part of a file, and takes no memory of the host.
        large if large > 1024 * MIB => format!("truncate -s {large} f"),
        _ => format!("head -c {} /dev/zero >> f", bytes - 1000),
    };
    let script = format!("set -e; head -c 1000 /dev/urandom > f; {rest}; sha256sum f");
    let spec = json!({
        "preset": "bash", "script": script, "artifacts": [{"path": "f", "required": true}], "resources": {"disk": disk},
    });
    let id = up.submit(&spec).await?;
    let job = up.ended(&id).await?;
    let said = String::from_utf8(up.stream(&id, "stdout").await?)?;
    let digest = job["artifacts"]["files"][0]["digest"].as_str().unwrap_or_default();
    if job["ending"]["verdict"] != "succeeded"
        || !said.starts_with(digest.trim_start_matches("sha256:"))
        || digest.is_empty()
    {
        return Err(format!("the file did not come back as it was: {}", job["artifacts"]).into());
    }
    let number = |value: &serde_json::Value| value.as_f64().ok_or("no time");
    let wall: f64 = job["usage"]["wall"].as_str().map_or(Ok(0.0), milliseconds)?;
    let spent = number(&job["ended_at"])? - number(&job["started_at"])? - wall;
    Ok(bytes as f64 / 1e6 / (spent.max(1.0) / 1e3))
}

/// A span as documents write it: `1h2m3s4ms` in part.
fn milliseconds(text: &str) -> Outcome<f64> {
    let (mut all, mut digits, mut unit) = (0.0, String::new(), String::new());
    let mut parts = Vec::new();
    for c in text.chars() {
        if c.is_ascii_digit() || c == '.' {
            if !unit.is_empty() {
                parts.push((std::mem::take(&mut digits), std::mem::take(&mut unit)));
            }
            digits.push(c);
        } else {
            unit.push(c);
        }
    }
    parts.push((digits, unit));
    for (digits, unit) in parts {
        let factor = match unit.as_str() {
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            _ => return Err(format!("{text} is no span").into()),
        };
        all += digits.parse::<f64>()? * factor;
    }
    Ok(all)
}

/// The same bytes hashed and written to a file here, synced.
fn reference(bytes: u64) -> Outcome<f64> {
    let mut file = tempfile::tempfile()?;
    let piece = vec![0u8; 512 * 1024];
    let begun = Instant::now();
    let mut hash = Sha256::new();
    for _ in 0..bytes / piece.len() as u64 {
        hash.update(&piece);
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let _ = hash.finalize();
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

//! The figures of what goes into a cell: how fast inputs cross the wire into a workspace, and what the agent's memory does meanwhile. A report,
//! not a test.
//!
//! `cargo bench --bench inputs -- [--short]`

#[allow(dead_code, reason = "shared with the other benches")]
mod asked;
#[allow(dead_code, reason = "shared with the other benches")]
mod fleet;

use asked::Asked;
use fleet::{Member, Outcome};
use serde_json::{Value, json};

/// A content that is not all the same, and has no marker in it.
fn piece() -> Vec<u8> {
    (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x7f).collect()
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let (mib, times): (u64, usize) = if Asked::read().short { (128, 1) } else { (2048, 5) };
    let up = Member::up("docker: {shared: true}\nagent: {memory: 1TiB}\n").await?;
    let blob = up.upload(&piece(), mib).await?;
    let before = up.memory("VmRSS")?;
    let disk = format!("{}MiB", mib + 16);
    let given = json!({"preset": "bash", "command": ["true"], "resources": {"disk": disk},
        "inputs": [{"path": "big", "blob": blob}]});
    // The same bytes made by the job itself, which is as fast as a workspace takes them.
    let made =
        json!({"preset": "bash", "script": format!("head -c {mib}M /dev/zero > big"), "resources": {"disk": disk}});
    let empty = json!({"preset": "bash", "command": ["true"], "resources": {"disk": disk}});
    let (mut rates, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let idle = until_running(&up, &empty).await?.0;
        let moved = until_running(&up, &given).await?.0 - idle;
        let (_, wall) = until_running(&up, &made).await?;
        let bytes = (mib << 20) as f64 / 1e6;
        rates.push(bytes / (moved / 1e3).max(0.001));
        reference.push(bytes / (wall / 1e3).max(0.001));
    }
    for rates in [&mut rates, &mut reference] {
        rates.sort_by(f64::total_cmp);
    }
    let (rate, reference) = (rates[times / 2], reference[times / 2]);
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "p50", "reference", "ratio");
    println!(
        "{:<58} {rate:>10.0} {reference:>10.0} {:>6.2}   >= 200",
        "inputs through the wire (MB/s)",
        rate / reference
    );
    let grown = (up.memory("VmHWM")? - before) / 1048576.0;
    println!(
        "{:<58} {grown:>10.1} {:>10} {:>6}   <= 64",
        format!("memory of `up` for {mib} MiB of inputs, more by (MiB)"),
        "",
        ""
    );
    up.stop().await
}

/// Milliseconds from the preparation to the start, and of the job itself.
async fn until_running(up: &Member, spec: &Value) -> Outcome<(f64, f64)> {
    let id = up.submit(spec).await?;
    let job = up.ended(&id).await?;
    if job["ending"]["process_exit_code"] != 0 {
        return Err(job.to_string().into());
    }
    let at = |phase: &str| {
        let events = job["history"].as_array().into_iter().flatten();
        events.filter(|event| event["phase"] == phase).find_map(|event| event["at"].as_f64()).ok_or("no such phase")
    };
    Ok((at("running")? - at("preparing")?, at("ended")? - at("running")?))
}

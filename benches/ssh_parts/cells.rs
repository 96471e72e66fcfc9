//! Jobs from the executor to their end over the warden's wire, with nothing around them.

use super::driver::{self, Driven, run_one};
use super::fleet::Outcome;
use super::sshd::{Folder, Sshd, login};
use super::{Master, inventory, ms, must, openssh, pool, route, row, run, spans, web};
use futures_util::StreamExt;
use jobcell::executor::ssh::SshExecutor;
use jobcell::job::{ByteSize, JobSpec, OwnerId};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

struct Rig {
    executor: SshExecutor,
    stop: CancellationToken,
    _records: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An agent's part that knows one host; `owner` is the installation, which finds its warden again.
fn rig(folder: &Folder, inventory: &Path, owner: &OwnerId) -> Outcome<Rig> {
    let (pool, stop) = pool(folder, inventory)?;
    let records = tempfile::tempdir()?;
    let live = pool.inventory().clone();
    let executor = SshExecutor::new(pool, live, owner.clone(), records.path(), ByteSize::from_mib(64))?;
    Ok(Rig { executor, stop, _records: records })
}

/// `true`, run as such or by a shell, by a warden that stays or in plain mode.
fn spec(mode: &str, shell: bool) -> Arc<JobSpec> {
    let command = if shell { json!(["/bin/sh", "-c", "exec true"]) } else { json!(["true"]) };
    driver::spec(&json!({"target": {"host": "web", "mode": mode}, "command": command}))
}

/// So many, `at_once` at a time; how many in a second.
async fn many(executor: &SshExecutor, spec: &Arc<JobSpec>, count: usize, at_once: usize) -> Outcome<f64> {
    let began = Instant::now();
    let all = futures_util::stream::iter(0..count).map(|_| run_one(executor, spec)).buffer_unordered(at_once);
    for ended in all.collect::<Vec<_>>().await {
        ended?;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// What the machine itself gives: a program begun and waited for, without anything around it, on both cores; how many in a second.
fn by_hand(count: usize) -> Outcome<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let one = || {
            for _ in 0..count {
                must(std::process::Command::new("true").stdin(std::process::Stdio::null())).expect("runs");
            }
        };
        (0..2).for_each(|_| drop(scope.spawn(one)));
    });
    Ok((2 * count) as f64 / began.elapsed().as_secs_f64())
}

/// `true` by asyncssh, in a Python that has it (`JOBCELL_BENCH_PYTHON`, which scripts/bench.sh makes): the 50th and the 95th percentile in
/// milliseconds, and how many in a second. `None` without one.
fn by_asyncssh(folder: &Folder, sshd: &Sshd, count: usize, at_once: usize) -> Outcome<Option<(f64, f64, f64)>> {
    let Some(python) = std::env::var_os("JOBCELL_BENCH_PYTHON") else { return Ok(None) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ssh_parts/asyncssh_true.py");
    let said = std::process::Command::new(python)
        .arg(script)
        .args([&sshd.address, &sshd.port.to_string(), login()])
        .args([folder.shown("user"), folder.shown("known_hosts"), count.to_string(), at_once.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&said.stdout);
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(half)), Some(Ok(most)), Some(Ok(rate))) if said.status.success() => Ok(Some((half, most, rate))),
        _ => Err(format!("asyncssh: {}", String::from_utf8_lossy(&said.stderr)).into()),
    }
}

/// Ends the warden that stayed, with what it left.
fn clear(sshd: &Sshd, folder: &Folder, owner: &OwnerId) -> Outcome<()> {
    let clear = format!(
        "for p in $(pgrep -u \"$(id -u)\" -f -- \"[h]ub --dir .*/{owner} \"); do kill -KILL $p; done; rm -rf ~/.jobcell/{owner}"
    );
    must(openssh(folder, sshd, None).arg(clear))
}

/// Figures of both modes, and of one channel for each command.
pub(crate) async fn cells(times: usize, count: usize) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("MaxStartups 100\n");
    let inventory = inventory(&folder, &web(&sshd));
    let owner = OwnerId::random();
    let (direct, shell, plain) = (spec("auto", false), spec("auto", true), spec("plain", false));

    let warm = rig(&folder, &inventory, &owner)?;
    run_one(&warm.executor, &direct).await?;
    let (mut there, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..times.div_ceil(8) {
        for (spec, spans) in [(&direct, &mut there), (&plain, &mut alone)] {
            let cold = rig(&folder, &inventory, &owner)?;
            let began = Instant::now();
            run_one(&cold.executor, spec).await?;
            spans.push(ms(began));
        }
    }
    spans("cold connection and a job, the warden there", &mut there, None, "<= 60 ms");
    spans("cold connection and a job, plain", &mut alone, None, "<= 75 ms");

    let master = Master::open(&folder, &sshd)?;
    let mut shared = Vec::new();
    let mut kinds = [
        (&direct, "warm `true`, resident", "<= 1.0 ms, 0.15"),
        (&shell, "warm `true` by a shell, resident", "<= 1.5 ms"),
    ]
    .map(|(spec, name, goal)| (spec, name, goal, Vec::new(), Vec::new()))
    .to_vec();
    kinds.push((&plain, "warm `true`, plain", "", Vec::new(), Vec::new()));
    run_one(&warm.executor, &plain).await?;
    for _ in 0..times {
        for (spec, _, _, exits, ends) in &mut kinds {
            let began = Instant::now();
            let mut driven = Driven::begin(&warm.executor, spec).await?;
            driven.exit().await?;
            exits.push(ms(began));
            driven.close().await?;
            ends.push(ms(began));
        }
        let began = Instant::now();
        must(openssh(&folder, &sshd, Some(&master.path)).arg("true"))?;
        shared.push(ms(began));
    }
    for (_, name, goal, exits, ends) in &mut kinds {
        spans(&format!("{name}, exit known; ControlMaster"), exits, Some(&mut shared.clone()), goal);
        spans(&format!("{name}, nothing of it left"), ends, None, "");
    }

    match by_asyncssh(&folder, &sshd, times, 1)? {
        Some((half, most, _)) => {
            row("warm `true`, asyncssh, p50 (ms)", half, None, "");
            row("warm `true`, asyncssh, p95 (ms)", most, None, "");
        }
        None => println!("asyncssh is not here: scripts/bench.sh --bench ssh brings it"),
    }

    let floor = by_hand(count / 2)?;
    row("`true`/s started by hand, two at once, no SSH", floor, None, "");
    let web = route(warm.executor.pool(), "web")?;
    for at_once in [1, 16, 64] {
        let channels = count / 4;
        let began = Instant::now();
        let all = futures_util::stream::iter(0..channels).map(|_| run(warm.executor.pool(), &web));
        for ran in all.buffer_unordered(at_once).collect::<Vec<_>>().await {
            ran?;
        }
        let reference = channels as f64 / began.elapsed().as_secs_f64();
        if let Some((_, _, rate)) = by_asyncssh(&folder, &sshd, count / 4, at_once)? {
            row(&format!("`true`/s, asyncssh, {at_once} at once; a channel each"), rate, Some(reference), "");
        }
        let resident = many(&warm.executor, &direct, count, at_once).await?;
        row(
            &format!("`true`/s, resident, {at_once} at once; a channel each"),
            resident,
            Some(reference),
            ">= 2,000, 2 x",
        );
        let resident = many(&warm.executor, &shell, count, at_once).await?;
        row(
            &format!("`true`/s by a shell, resident, {at_once} at once; a channel each"),
            resident,
            Some(reference),
            "1.5 x",
        );
        let plain = many(&warm.executor, &plain, count / 4, at_once).await?;
        row(&format!("`true`/s, plain, {at_once} at once; a channel each"), plain, Some(reference), ">= 800");
    }
    clear(&sshd, &folder, &owner)
}

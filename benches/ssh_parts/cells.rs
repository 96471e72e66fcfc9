//! Jobs from the executor to their end over the warden's wire, with nothing around them.

use super::driver::{self, Driven, run_one};
use super::fleet::Outcome;
use super::sshd::{Folder, Sshd, login};
use super::{Master, inventory, ms, must, openssh, pool, programs, route, row, run, spans, web};
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

/// A program that both sides run: `ssh host true` is a word of the login's shell, and no program.
const PROGRAM: &str = "/bin/true";

/// This program, run as such or by a shell, by a warden that stays or in plain mode.
fn spec(mode: &str, program: &str, shell: bool) -> Arc<JobSpec> {
    let command = if shell { json!(["/bin/sh", "-c", program]) } else { json!([program]) };
    driver::spec(&json!({"target": {"host": "web", "mode": mode}, "command": command}))
}

/// A program that ends at once, and has no C library that begins before it: what is left is the way to it. Where it is, for every login.
fn bare(folder: &Folder) -> String {
    /// Where it lies in memory.
    const BASE: u64 = 0x40_0000;
    /// A header of an ELF file, one of its single segment, and the code behind them.
    const HEADS: u64 = 64 + 56;
    /// `exit(0)` of x86-64.
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let length = HEADS + CODE.len() as u64;
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<u8>>();
    let file = [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 9],
        halves(&[2, 62]),
        words(&[1]),
        longs(&[BASE + HEADS, 64, 0]),
        words(&[0]),
        halves(&[64, 56, 1, 64, 0, 0]),
        words(&[1, 5]),
        longs(&[0, BASE, BASE, length, length, 0x1000]),
        CODE.to_vec(),
    ];
    programs::put(&folder.path("bare"), file.concat(), 0o755);
    folder.shown("bare")
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
fn by_hand(program: &str, count: usize) -> Outcome<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let one = || {
            for _ in 0..count {
                must(std::process::Command::new(program).stdin(std::process::Stdio::null())).expect("runs");
            }
        };
        (0..2).for_each(|_| drop(scope.spawn(one)));
    });
    Ok((2 * count) as f64 / began.elapsed().as_secs_f64())
}

/// [`PROGRAM`] by asyncssh, in a Python that has it (`JOBCELL_BENCH_PYTHON`, which scripts/bench.sh makes): the 50th and the 95th percentile in
/// milliseconds, and how many in a second. `None` without one.
fn by_asyncssh(folder: &Folder, sshd: &Sshd, count: usize, at_once: usize) -> Outcome<Option<(f64, f64, f64)>> {
    let Some(python) = std::env::var_os("JOBCELL_BENCH_PYTHON") else { return Ok(None) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ssh_parts/asyncssh_true.py");
    let said = std::process::Command::new(python)
        .arg(script)
        .args([&sshd.address, &sshd.port.to_string(), login()])
        .args([folder.shown("user"), folder.shown("known_hosts"), PROGRAM.to_owned()])
        .args([count.to_string(), at_once.to_string()])
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

/// One job: until its exit is known, and until nothing of it is left, in milliseconds.
async fn timed(executor: &SshExecutor, spec: &Arc<JobSpec>) -> Outcome<[f64; 2]> {
    let began = Instant::now();
    let mut driven = Driven::begin(executor, spec).await?;
    driven.exit().await?;
    let exit = ms(began);
    driven.close().await?;
    Ok([exit, ms(began)])
}

/// Warm jobs by the warden alone, beside nothing: for whoever changes something on their way.
pub(crate) async fn warm(times: usize, count: usize) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("MaxStartups 100\n");
    let inventory = inventory(&folder, &web(&sshd));
    let owner = OwnerId::random();
    let (warm, direct) = (rig(&folder, &inventory, &owner)?, spec("auto", PROGRAM, false));
    run_one(&warm.executor, &direct).await?;
    let (mut exits, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let [exit, end] = timed(&warm.executor, &direct).await?;
        exits.push(exit);
        ends.push(end);
    }
    spans("warm `true`, resident, exit known", &mut exits, None, "<= 1.0 ms");
    spans("warm `true`, resident, nothing of it left", &mut ends, None, "");
    row("jobs/s started by hand, two at once, no SSH", by_hand(PROGRAM, count / 2)?, None, "");
    for at_once in [1, 16, 64] {
        let rate = many(&warm.executor, &direct, count, at_once).await?;
        row(&format!("jobs/s, resident, {at_once} at once"), rate, None, ">= 2,000");
    }
    clear(&sshd, &folder, &owner)
}

/// Figures of both modes, and of one channel for each command.
pub(crate) async fn cells(times: usize, count: usize) -> Outcome<()> {
    let folder = Folder::new();
    let sshd = folder.sshd("MaxStartups 100\n");
    let inventory = inventory(&folder, &web(&sshd));
    let owner = OwnerId::random();
    let bare = bare(&folder);
    let (direct, shell, plain) =
        (spec("auto", PROGRAM, false), spec("auto", PROGRAM, true), spec("plain", PROGRAM, false));
    let quick = spec("auto", &bare, false);

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
    run_one(&warm.executor, &plain).await?;
    let kinds = [
        (&direct, PROGRAM, "warm `true`, resident", "<= 1.0 ms, 0.15"),
        (&shell, PROGRAM, "warm `true` by a shell, resident", "<= 1.5 ms"),
        (&quick, bare.as_str(), "warm bare program, resident", ""),
        (&plain, PROGRAM, "warm `true`, plain", ""),
    ];
    for (spec, program, name, goal) in kinds {
        let (mut exits, mut ends, mut shared) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..times {
            let [exit, end] = timed(&warm.executor, spec).await?;
            exits.push(exit);
            ends.push(end);
            let began = Instant::now();
            must(openssh(&folder, &sshd, Some(&master.path)).arg(program))?;
            shared.push(ms(began));
        }
        spans(&format!("{name}, exit known; ControlMaster"), &mut exits, Some(&mut shared), goal);
        spans(&format!("{name}, nothing of it left"), &mut ends, None, "");
    }

    match by_asyncssh(&folder, &sshd, times, 1)? {
        Some((half, most, _)) => {
            row("warm `true`, asyncssh, p50 (ms)", half, None, "");
            row("warm `true`, asyncssh, p95 (ms)", most, None, "");
        }
        None => println!("asyncssh is not here: scripts/bench.sh --bench ssh brings it"),
    }

    row("`true`/s started by hand, two at once, no SSH", by_hand(PROGRAM, count / 2)?, None, "");
    row("bare programs/s started by hand, two at once, no SSH", by_hand(&bare, count / 2)?, None, "");
    for at_once in [1, 16, 64] {
        let word = channels(&warm.executor, "true", count / 4, at_once).await?;
        row(&format!("the shell's own `true`/s, a channel each, {at_once} at once"), word, None, "");
        let reference = channels(&warm.executor, PROGRAM, count / 4, at_once).await?;
        if let Some((_, _, rate)) = by_asyncssh(&folder, &sshd, count / 4, at_once)? {
            row(&format!("`true`/s, asyncssh, {at_once} at once; a channel each"), rate, Some(reference), "");
        }
        let kinds = [
            (&direct, count, "`true`/s, resident", ">= 2,000, 2 x"),
            (&shell, count, "`true`/s by a shell, resident", "1.5 x"),
            (&plain, count / 4, "`true`/s, plain", ">= 800"),
        ];
        for (spec, count, name, goal) in kinds {
            let rate = many(&warm.executor, spec, count, at_once).await?;
            row(&format!("{name}, {at_once} at once; a channel each"), rate, Some(reference), goal);
        }
        let reference = channels(&warm.executor, &bare, count / 4, at_once).await?;
        let rate = many(&warm.executor, &quick, count, at_once).await?;
        row(&format!("bare programs/s, resident, {at_once} at once; a channel each"), rate, Some(reference), "");
    }
    clear(&sshd, &folder, &owner)
}

/// Commands over a channel for each, so many of them, `at_once` at a time; how many in a second.
async fn channels(executor: &SshExecutor, command: &str, count: usize, at_once: usize) -> Outcome<f64> {
    let web = route(executor.pool(), "web")?;
    let began = Instant::now();
    let all = futures_util::stream::iter(0..count).map(|_| run(executor.pool(), &web, command));
    for ran in all.buffer_unordered(at_once).collect::<Vec<_>>().await {
        ran?;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

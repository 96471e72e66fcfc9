//! The figures of the warden that stays on a host, without SSH: its own program over the pipes of one connector, against starting the same
//! program by hand. A report, not a test: it exits with an error only when something is wrong, never because a number is.
//!
//! `cargo bench --bench resident -- [--short] [NAME…]` with the names one, rate. Both sides share the machine.

mod asked;
#[path = "../tests/it/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/it/resident/rig.rs"]
mod rig;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/it/ssh/sshd.rs"]
mod sshd;

use asked::Asked;
use jobcell::executor::docker::WARDEN;
use jobcell::protocol::wire::{self, Decoder, FromHub, FromWarden, MUX_VERSION, MuxDecoder, ToHub, ToWarden};
use rig::{OWNER, Rig, beginning, program};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const PROGRAM: &str = "/bin/true";
/// The kernel's ticks in a second, in which it tells the use of the processor.
const TICK_US: f64 = 10_000.0;

fn main() {
    let asked = Asked::read();
    println!("{:<58} {:>10} {:>10}", "figure", "value", "by hand");
    if asked.wants("one") {
        let times = if asked.short { 50 } else { 1000 };
        let mut hand: Vec<f64> = (0..times).map(|_| by_hand()).collect();
        let (_, mut spans, _) = jobs(times, 1);
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let (ours, hand) = (quantile(&mut spans, part), quantile(&mut hand, part));
            println!(
                "{:<58} {ours:>10.2} {hand:>10.2}",
                format!("one `true` at a time, opened to its end, {name}, ms")
            );
        }
    }
    if asked.wants("rate") {
        let times = if asked.short { 200 } else { 10_000 };
        for at_once in [8, 32, 256] {
            let (rate, _, [hub, rest]) = jobs(times, at_once);
            println!("{:<58} {rate:>10.0}", format!("`true` jobs/s over one connection, {at_once} at once"));
            println!("{:<58} {hub:>10.0}", "  processor time of the hub for each, µs");
            println!("{:<58} {rest:>10.0}", "  of its keeper and `true`, µs");
        }
    }
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(part * (values.len() - 1) as f64).round() as usize]
}

fn by_hand() -> f64 {
    let began = Instant::now();
    assert!(Command::new(PROGRAM).stdin(Stdio::null()).status().expect("runs").success());
    began.elapsed().as_secs_f64() * 1000.0
}

/// One connection, as an agent has it.
struct Link {
    to: ChildStdin,
    from: ChildStdout,
    mux: MuxDecoder,
    buffer: Vec<u8>,
}

/// So many jobs, as many of them at a time: jobs in a second, how long each took in milliseconds, and microseconds of the processor for each.
fn jobs(times: usize, at_once: u16) -> (f64, Vec<f64>, [f64; 2]) {
    let id = |kind| sshd::must("id", &[kind, sshd::login()]).trim().parse().expect("a number");
    let user = rustix::process::geteuid().is_root().then(|| (id("-u"), id("-g")));
    let rig = Rig::new(WARDEN, user);
    let mut connector = rig.command(&["connect", "--dir", rig.dir().to_str().expect("text"), "--owner", OWNER]);
    let mut connector = connector.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let (to, from) = (connector.stdin.take().expect("piped"), connector.stdout.take().expect("piped"));
    let mut link = Link { to, from, mux: MuxDecoder::new(), buffer: vec![0; 256 * 1024] };
    let (mut hub, mut out) = (0, Vec::new());
    ToHub::Hello { version: MUX_VERSION }.encode(&mut out);
    let mut running: BTreeMap<u16, (Decoder, Instant)> = BTreeMap::new();
    let mut free: Vec<u16> = (1..=at_once).collect();
    let (mut spans, mut begun, mut ended, mut began) = (Vec::new(), 0, 0, Instant::now());
    while ended < times {
        link.to.write_all(&out).expect("is taken");
        out.clear();
        let count = link.from.read(&mut link.buffer).expect("is read");
        assert!(count > 0, "the connection has ended");
        link.mux.feed(&link.buffer[..count]);
        while let Some(envelope) = link.mux.next().expect("well formed") {
            match FromHub::decode(&envelope).expect("well formed") {
                FromHub::Hello { pid, .. } => (hub, began) = (pid, Instant::now()),
                FromHub::Data { channel, bytes } => {
                    let (decoder, since) = running.get_mut(&channel).expect("runs");
                    decoder.feed(bytes);
                    while let Some(frame) = decoder.next() {
                        if let FromWarden::Exit(exit) = FromWarden::decode(&frame).expect("well formed") {
                            assert_eq!(exit.code, 0, "{exit:?}");
                            spans.push(since.elapsed().as_secs_f64() * 1000.0);
                            let mut close = Vec::new();
                            ToWarden::Close.encode(1, &mut close);
                            ToHub::Data { channel, bytes: &close }.encode(&mut out);
                        }
                    }
                }
                FromHub::Ended { channel, code: 0, .. } => {
                    free.push(channel);
                    ended += 1;
                }
                FromHub::Opened { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        while hub > 0
            && begun < times
            && let Some(channel) = free.pop()
        {
            begun += 1;
            let name = format!("job-{begun}");
            ToHub::Open { channel, name: name.clone() }.encode(&mut out);
            ToHub::Data { channel, bytes: &beginning(&name, &program(&[PROGRAM]), &[]) }.encode(&mut out);
            running.insert(channel, (Decoder::new(), Instant::now()));
        }
    }
    let rate = times as f64 / began.elapsed().as_secs_f64();
    let stat = std::fs::read_to_string(format!("/proc/{hub}/stat")).expect("is there");
    let ticks: Vec<f64> = stat
        .rsplit_once(") ")
        .expect("a line")
        .1
        .split(' ')
        .skip(11)
        .take(4)
        .map(|field| field.parse().expect("a number"))
        .collect();
    let each = |ticks: f64| ticks * TICK_US / times as f64;
    drop(link);
    connector.wait().expect("has ended");
    (rate, spans, [each(ticks[0] + ticks[1]), each(ticks[2] + ticks[3])])
}

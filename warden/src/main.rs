//! The warden: process 1 of a cell. It starts the job, numbers and keeps its output until the agent has stored it,
//! reaps and signals the whole tree, and reports the end over the same stream.
//!
//! Static, std-only, one thread. Nothing is needed in the image. Its standard input and output are the transport; it
//! takes no order by signal, and the job can neither look into it nor attach to it.

mod cgroup;
mod facts;
mod intake;
mod job;
mod ladder;
mod ring;
mod sys;
mod warden;
#[allow(dead_code)] // Half of it is what the agent says and reads.
mod wire;

use std::process::ExitCode;

/// Without a commit in this time the warden ends by itself, unless it was told another one.
const START_DEADLINE_MS: u64 = 120_000;

fn main() -> ExitCode {
    sys::set_undumpable();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let deadline_ms = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => START_DEADLINE_MS,
        ["--start-deadline-ms", number] if number.parse::<u64>().is_ok() => number.parse().unwrap_or(START_DEADLINE_MS),
        _ => {
            eprintln!("warden: usage: warden [--start-deadline-ms N]");
            return ExitCode::from(2);
        }
    };
    match warden::Warden::new(deadline_ms) {
        Ok(warden) => ExitCode::from(warden.run()),
        Err(error) => {
            eprintln!("warden: cannot begin: {error}");
            ExitCode::from(1)
        }
    }
}

//! The warden: process 1 of a cell. It starts one job, numbers and keeps its output until the agent has stored it, ends it
//! when asked or when its time is over, and tells how it ended. On a host that is reached over SSH, where there are no cells, the same program
//! stays as a hub that takes many jobs, and the same loop looks after each of them in a process of its own, its keeper.
//!
//! Needs nothing of the image: static, standard library only. Speaks wire v1 over its standard input and output; standard
//! error is for last words. Its parts, from the pure to the impure:
//!
//! - `wire` frames and messages · `inbox`, `outbox` what is said · `ring` unacknowledged output · `ladder` how to stop
//! - `procfs`, `cgroup` what the kernel says · `room` whether its file systems were full · `plan` from spec to exec
//! - `mask` secrets in what the job writes · `secrets` how it gets them
//! - `tripwire` calls that end the job · `egress` the proxy of a job that may go out
//! - `collect` the files that a job leaves to be kept · `results` the values it leaves · `progress` what it says of itself · `helper` a command for jobs
//! - `receipt` the isolation in force · `intake` the spec's sections · `unpack` what the job is given · `source` the job's pipes
//! - `job` its processes · `place` where it is and how far signals reach · `groups` its own control group on a host
//! - `tree` what descends from a process
//! - `connect` what an SSH channel runs · `hub` many jobs
//! - `serve` the loop · `sys` system calls, the only place with `unsafe`

#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod cgroup;
mod collect;
mod connect;
mod crc;
mod egress;
mod groups;
mod helper;
mod hub;
mod inbox;
mod intake;
mod job;
mod ladder;
#[allow(clippy::cast_possible_truncation, reason = "forms of secrets are far fewer than numbers")]
mod mask;
mod outbox;
mod place;
mod plan;
mod procfs;
mod progress;
mod receipt;
mod results;
mod ring;
mod room;
mod secrets;
mod serve;
mod source;
#[allow(clippy::cast_possible_truncation, reason = "numbers of system calls and C's int are what they are")]
mod sys;
mod tree;
mod tripwire;
mod unpack;
#[allow(dead_code, unused_imports, reason = "the agent's half is not used here")]
mod wire;

use std::process::ExitCode;

/// Which binary this is.
const BUILD: &str = match option_env!("JOBCELL_WARDEN_BUILD") {
    Some(build) => build,
    None => "unversioned",
};
/// The arguments are wrong, or this is not process 1.
const EXIT_USAGE: u8 = 2;
/// The kernel refused something that nothing works without.
const EXIT_NO_KERNEL: u8 = 5;
/// As much as an unprivileged process may ask for by default.
const TRANSPORT_PIPE_BYTES: u32 = 1 << 20;
/// How long a cell waits for its job when it is not told.
const START_DEADLINE_MS: u64 = 120_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() != 1
        && let Some(code) = on_a_host(&args)
    {
        return ExitCode::from(code);
    }
    if std::process::id() != 1 && helper::is_meant(args.first().map(String::as_str)) {
        return match helper::run(&args) {
            Ok(said) => {
                print!("{said}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("jobcell: {error}");
                ExitCode::from(EXIT_USAGE)
            }
        };
    }
    let code = match start_deadline(args.into_iter()) {
        // Everywhere else "all processes" would mean the user's own.
        Ok(_) if std::process::id() != 1 => {
            eprintln!("jobcell warden {BUILD}: runs only as process 1 of a cell");
            EXIT_USAGE
        }
        Ok(deadline_ms) => prepare().map_or_else(
            |error| {
                eprintln!("jobcell warden {BUILD}: cannot start: {error}");
                EXIT_NO_KERNEL
            },
            |(receipt, signals)| serve::Warden::new(receipt, signals, deadline_ms, place::Place::Cell).run(),
        ),
        Err(text) => {
            eprintln!("jobcell warden {BUILD}: {text}; use --start-deadline-ms N --owner ID");
            EXIT_USAGE
        }
    };
    ExitCode::from(code)
}

/// What is for hosts, if that is asked for.
fn on_a_host(args: &[String]) -> Option<u8> {
    let (first, rest) = args.split_first()?;
    let done = match first.as_str() {
        // Whether it runs there at all is asked by this.
        "--version" => {
            println!("jobcell warden {BUILD}");
            Ok(())
        }
        "connect" => connect::options(rest.iter().cloned()).and_then(|options| connect::connect(&options)),
        "hub" => connect::options(rest.iter().cloned()).and_then(connect::run_hub),
        _ => return None,
    };
    match done {
        Ok(()) => Some(0),
        Err(text) => {
            eprintln!("jobcell warden {BUILD}: {text}");
            Some(EXIT_USAGE)
        }
    }
}

/// Closes the doors to the job that will run beside us with the same user id, before there is one.
fn prepare() -> std::io::Result<(receipt::Receipt, std::os::fd::OwnedFd)> {
    sys::set_undumpable()?;
    let signals = sys::block_signals()?;
    for fd in [0, 1] {
        sys::make_ours(fd)?;
    }
    // Fewer, larger hand-overs to whoever carries the transport. What lies in it is within the window like all the rest.
    sys::widen_pipe(1, TRANSPORT_PIPE_BYTES);
    // Less the other way: an order waits behind what lies in it.
    sys::widen_pipe(0, TRANSPORT_PIPE_BYTES / 4);
    Ok((receipt::Receipt::gather(), signals))
}

/// Whether an argument is one of the warden's own.
fn is_own(arg: &str) -> bool {
    matches!(arg, "--start-deadline-ms" | "--owner")
}

fn start_deadline(mut args: impl Iterator<Item = String>) -> Result<u64, String> {
    let mut deadline = START_DEADLINE_MS;
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--start-deadline-ms", Some(value)) => {
                deadline = value.parse().map_err(|_| format!("{value:?} is not a number of milliseconds"))?;
            }
            // Whose cell this is; for those who look at the process from outside.
            ("--owner", Some(_)) => {}
            (name, None) if is_own(name) => return Err(format!("{name} has no value")),
            (other, _) => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| start_deadline(args.iter().map(|arg| (*arg).to_owned()));
        assert_eq!(parse(&[]), Ok(START_DEADLINE_MS));
        assert_eq!(parse(&["--start-deadline-ms", "250"]), Ok(250));
        assert_eq!(parse(&["--start-deadline-ms", "250", "--owner", "0a1b2c3d"]), Ok(250));
        for bad in [&["--start-deadline-ms"][..], &["--start-deadline-ms", "-1"], &["--owner"], &["x", "1"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

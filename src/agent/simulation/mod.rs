//! The whole agent in a world that is out to get it: agents, backend, cells and wardens in one thread under a paused clock, with
//! faults drawn from a seed. The same seed is the same run. docs/simulation.md says how to use it.

mod check;
mod ledger;
mod mutants;
mod reasons;
mod run;
mod scenario;
mod server;
mod tries;
mod world;

use run::{Outcome, run};
use scenario::{Fault, Scenario};

/// Real time that one run may take; it is milliseconds.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(30);
/// Seeds of an ordinary test run.
const SEEDS: u64 = 2_000;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs, and looks for the smallest part of it that still fails.
fn shrink(scenario: &Scenario) -> Scenario {
    let fails = |scenario: &Scenario| !run(scenario, false).violations.is_empty();
    let mut smallest = scenario.clone();
    loop {
        let before = (smallest.faults.len(), smallest.jobs.iter().filter(|job| !job.left_out).count());
        for place in (0..smallest.faults.len()).rev() {
            let mut smaller = smallest.clone();
            smaller.faults.remove(place);
            if fails(&smaller) {
                smallest = smaller;
            }
        }
        for place in 0..smallest.jobs.len() {
            let mut smaller = smallest.clone();
            smaller.jobs[place].left_out = true;
            if !smallest.jobs[place].left_out && fails(&smaller) {
                smallest = smaller;
            }
        }
        if before == (smallest.faults.len(), smallest.jobs.iter().filter(|job| !job.left_out).count()) {
            return smallest;
        }
    }
}

/// Everything that there is to say about a seed that fails.
fn story(scenario: &Scenario, outcome: &Outcome) -> String {
    let smallest = shrink(scenario);
    let again = run(&smallest, true);
    let mut story = format!("seed {} fails; the same again: JOBCELL_SIM_SEED={0}\n", scenario.seed);
    for violation in &outcome.violations {
        story += &format!("  {violation}\n");
    }
    story += &format!("the smallest part of it that fails, with lease {} ms:\n", smallest.lease_ms);
    for agent in &smallest.agents {
        story += &format!("  {agent:?}\n");
    }
    for (number, job) in smallest.jobs.iter().enumerate().filter(|(_, job)| !job.left_out) {
        story += &format!("  job {number} {job:?}\n");
    }
    for fault in &smallest.faults {
        story += &format!("  {fault:?}\n");
    }
    for line in &again.trace {
        story += &format!("{line}\n");
    }
    for violation in &again.violations {
        story += &format!("  {violation}\n");
    }
    story
}

/// Ends everything when a run gets nowhere: time that is virtual does not pass while something turns in circles.
struct Watch(std::sync::mpsc::SyncSender<u64>);

impl Watch {
    fn new() -> Self {
        let (sender, seeds) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut seed = None;
            loop {
                match seeds.recv_timeout(LONGEST) {
                    Ok(next) => seed = Some(next),
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("seed {seed:?} gets nowhere; JOBCELL_SIM_LIVE=1 JOBCELL_SIM_SEED=… shows where");
                        std::process::abort();
                    }
                }
            }
        });
        Self(sender)
    }

    fn begins(&self, seed: u64) {
        self.0.send(seed).expect("somebody watches");
    }
}

#[test]
fn whatever_happens_every_job_ends_once_and_truly() {
    let one = setting("JOBCELL_SIM_SEED");
    let first = one.or_else(|| setting("JOBCELL_SIM_FIRST")).unwrap_or(0);
    let count = if one.is_some() { 1 } else { setting("JOBCELL_SIM_SEEDS").unwrap_or(SEEDS) };
    let watch = Watch::new();
    let go_on = setting("JOBCELL_SIM_GO_ON").is_some();
    let mut failed = Vec::new();
    for seed in first..first + count {
        watch.begins(seed);
        let scenario = Scenario::of(seed);
        let outcome = run(&scenario, false);
        if !outcome.violations.is_empty() {
            assert!(go_on, "{}", story(&scenario, &outcome));
            failed.push(format!("{seed}: {}", outcome.violations[0]));
        }
    }
    assert!(failed.is_empty(), "{} seeds fail:\n{}", failed.len(), failed.join("\n"));
}

/// A backend that is away for a day: what ended meanwhile is told, with its output, within a minute of its return.
#[test]
fn what_ended_while_the_backend_was_away_for_a_day_is_told_within_a_minute_of_its_return() {
    const DAY: u64 = 24 * 3600 * 1000;
    let (away, minute) = (2_000, 60_000);
    for seed in 0..8 {
        let mut scenario = Scenario::of(seed);
        scenario.faults = vec![Fault::BackendRestart { at: away, down: DAY }];
        scenario.lease_ms = 300_000;
        scenario.agents.truncate(1);
        scenario.agents[0].slots = u32::try_from(scenario.jobs.len()).expect("a few");
        for (number, job) in scenario.jobs.iter_mut().enumerate() {
            // All are there before it goes, and have ended long before anybody would give them up.
            (job.at, job.lost_after_ms, job.retry, job.timeout_ms) = (number as u64, None, None, 3_600_000);
        }
        let outcome = run(&scenario, true);
        assert!(outcome.violations.is_empty(), "{}", story(&scenario, &outcome));
        let time =
            |line: &String| line.trim_start().split(' ').next().and_then(|at| at.parse::<u64>().ok()).expect("a time");
        let told: Vec<u64> = outcome.trace.iter().filter(|line| line.contains(" Reported ")).map(time).collect();
        let late: Vec<&u64> = told.iter().filter(|at| **at >= away).collect();
        assert!(late.iter().all(|at| **at >= away + DAY && **at <= away + DAY + minute), "seed {seed}: {told:?}");
        assert!(told.len() >= scenario.jobs.len(), "seed {seed}: {told:?}");
    }
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in 0..40 {
        let scenario = Scenario::of(seed);
        let (one, other) = (run(&scenario, true), run(&scenario, true));
        for (line, again) in one.trace.iter().zip(&other.trace) {
            assert_eq!(line, again, "seed {seed}");
        }
        assert_eq!(one.trace.len(), other.trace.len(), "seed {seed}");
        assert_eq!(one.seen, other.seen, "seed {seed}");
    }
}

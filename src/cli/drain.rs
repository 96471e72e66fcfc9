//! `jobcell drain` and `jobcell resume`: an agent gets no more jobs, and gets them again.

use super::client::Client;
use super::exit::WAITED_OUT;
use super::{Failure, Global};
use crate::job::Millis;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at what a drained agent still has.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The agent; may be left out when there is only one
    agent: Option<String>,
    /// Wait until it has no jobs any more
    #[arg(long)]
    wait: bool,
    /// With --wait: give up waiting after this time, with exit code 124; the agent stays drained
    #[arg(long, value_name = "TIME", requires = "wait")]
    timeout: Option<Millis>,
    /// Why, for those who look at agents or at jobs that wait
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) async fn drain(args: DrainArgs, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    let agent = one(&client, args.agent).await?;
    let reason = args.reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    let mut answer = client.drain(&agent, &reason).await?;
    let until = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout.as_duration()));
    if args.wait && held(&answer) > 0 {
        let jobs = held(&answer);
        global.note(&format!("{agent} is drained; waiting for the end of {jobs} of its jobs"));
    }
    while args.wait && held(&answer) > 0 {
        if until.is_some_and(|until| Instant::now() + LOOK > until) {
            global.output.print(&answer, || told(&agent, &answer))?;
            global.note("the time is over; it stays drained: `jobcell drain --wait` waits on");
            return Ok(WAITED_OUT);
        }
        tokio::time::sleep(LOOK).await;
        let drained = client.agents().await?["drained"][&agent].take();
        if drained.is_null() {
            return Err(Failure::new(format!("{agent} is not drained any more: somebody resumed or removed it")));
        }
        answer["drained"] = drained;
    }
    global.output.print(&answer, || told(&agent, &answer))?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    /// The agent
    agent: String,
    /// Why, for those who find it so
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Take the jobs from it that it has: they are tried again elsewhere, as after a lost agent
    #[arg(long)]
    stop: bool,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The agent; may be left out when there is only one
    agent: Option<String>,
    /// Also when it is quarantined
    #[arg(long)]
    quarantined: bool,
}

pub(super) async fn quarantine(args: QuarantineArgs, global: &Global) -> Result<u8, Failure> {
    let QuarantineArgs { agent, reason, stop } = args;
    let answer = Client::new(global)?.quarantine(&agent, &json!({"reason": reason, "stop": stop})).await?;
    global.output.print(&answer, || match answer["stopped"].as_u64() {
        Some(jobs) => format!("{agent} is quarantined; {jobs} of its jobs were taken from it"),
        None => format!("{agent} is quarantined; {} of its jobs go on there", held(&answer)),
    })?;
    Ok(0)
}

pub(super) async fn resume(args: ResumeArgs, global: &Global) -> Result<u8, Failure> {
    let ResumeArgs { agent, quarantined } = args;
    let client = Client::new(global)?;
    let agent = one(&client, agent).await?;
    let answer = client.resume(&agent, quarantined).await?;
    global.output.print(&answer, || format!("{agent} gets jobs"))?;
    Ok(0)
}

/// The agent that is meant. Errors: none was named, and there is not exactly one.
async fn one(client: &Client, named: Option<String>) -> Result<String, Failure> {
    if let Some(name) = named {
        return Ok(name);
    }
    let list = client.agents().await?;
    let seen = list["agents"].as_array().into_iter().flatten().map(|agent| &agent["name"]);
    let names = seen.chain(list["never_seen"].as_array().into_iter().flatten()).filter_map(Value::as_str);
    only(names.collect())
}

fn only(names: BTreeSet<&str>) -> Result<String, Failure> {
    match (names.first(), names.len()) {
        (Some(name), 1) => Ok((*name).to_owned()),
        (None, _) => Err(Failure::new("there is no agent")),
        (Some(_), count) => {
            let shown: Vec<&str> = names.into_iter().take(10).collect();
            let more = if count > shown.len() { ", …" } else { "" };
            Err(Failure::usage(format!("which agent? there are {count}: {}{more}", shown.join(", "))))
        }
    }
}

fn held(answer: &Value) -> u64 {
    answer["drained"]["held"].as_u64().unwrap_or_default()
}

fn told(agent: &str, answer: &Value) -> String {
    match held(answer) {
        0 => format!("{agent} is drained and has no jobs"),
        1 => format!("{agent} is drained; 1 job goes on there"),
        jobs => format!("{agent} is drained; {jobs} jobs go on there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_may_be_left_out_when_there_is_one() {
        assert_eq!(only(BTreeSet::from(["here"])).map_err(|failure| failure.to_string()), Ok("here".to_owned()));
        assert_eq!(only(BTreeSet::new()).expect_err("none").to_string(), "there is no agent");
        let two = only(BTreeSet::from(["b", "a"])).expect_err("two");
        assert_eq!((two.code, two.to_string().as_str()), (2, "which agent? there are 2: a, b"));
    }
}

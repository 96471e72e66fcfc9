//! How a command stays with a job that was taken in: to its end, with its output or without, for so long at most; and what
//! it says meanwhile.
//!
//! Never ends a job: whoever gives up waiting leaves it as it is.

use super::tell;
use crate::cli::client::Client;
use crate::cli::follow::{self, Sink};
use crate::cli::parts;
use crate::cli::progress::Progress;
use crate::cli::{Failure, Global, Output, exit};
use crate::job::Millis;
use clap::Args;
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// A person who watches sees a new phase this late at most.
const LIVE_PAUSE: Duration = Duration::from_millis(500);
/// A job that is still queued after this time is worth a word; so often it is asked whether the reason is another one.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same, of a job that an agent has: it waits again only when the agent is lost.
const HELD: Duration = Duration::from_secs(15);
/// How it stands when waiting is given up: asked once, and not for long, because time is over.
pub(super) const LAST_LOOK: Duration = Duration::from_secs(2);

/// How long a command stays with its job.
#[derive(Debug, Clone, Copy, Args)]
pub(in crate::cli) struct UntilArgs {
    /// Show its output as it comes, then exit with its code
    #[arg(short, long)]
    follow: bool,
    /// Wait for its end, then exit with its code
    #[arg(short, long)]
    wait: bool,
    /// Give up --wait or --follow after this time and exit with 124; the job goes on
    #[arg(long, value_name = "TIME")]
    timeout: Option<Millis>,
}

/// What a command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The backend has it.
    Taken,
    Ended,
    /// As `Ended`, with the output as it comes.
    Followed,
}

impl UntilArgs {
    /// Errors: a time for what is not waited for.
    pub(super) fn read(self) -> Result<(Until, Limit), Failure> {
        let until = match (self.follow, self.wait) {
            (true, _) => Until::Followed,
            (false, true) => Until::Ended,
            (false, false) if self.timeout.is_some() => {
                return Err(Failure::usage("--timeout says how long to wait: give --wait or --follow too"));
            }
            (false, false) => Until::Taken,
        };
        Ok((until, Limit::begin(self.timeout)))
    }
}

/// When a command gives up waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(Option<(Millis, Instant)>);

impl Limit {
    /// So long from now on; without a time, never.
    pub(super) fn begin(timeout: Option<Millis>) -> Self {
        Self(timeout.map(|timeout| (timeout, Instant::now() + timeout.as_duration())))
    }

    /// Does `work`, or says that it gave up: `left` tells what becomes of what was waited for.
    pub(super) async fn keep<T>(
        self,
        left: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some((timeout, end)) = self.0 else { return work.await };
        timeout_at(end, work).await.unwrap_or_else(|_| {
            let message = format!("gave up waiting after {timeout}; {}", left());
            Err(Failure { code: exit::WAITED_OUT, message })
        })
    }
}

/// What can be done about a job that goes on.
fn goes_on(id: &str) -> String {
    format!("the job goes on\n  jobcell job logs {id} -f\n  jobcell job explain {id}\n  jobcell job cancel {id}")
}

/// Stays with a job that was taken in as long as is wanted, and prints it.
pub(super) async fn see(
    client: &Client,
    mut job: Value,
    (until, limit): (Until, Limit),
    global: &Global,
) -> Result<u8, Failure> {
    let output = global.output;
    let id = job["id"].as_str().unwrap_or_default().to_owned();
    // Where the job's output is on standard output, its id would be in the way.
    let print = |job: &Value| match (output, until) {
        (Output::Table, Until::Followed) => Ok(()),
        _ => output.print(job, || id.clone()),
    };
    let ended = match until {
        Until::Taken => {
            print(&job)?;
            return Ok(0);
        }
        Until::Ended => limit.keep(|| goes_on(&id), ended(client, &job, global)).await,
        Until::Followed if parts::is_parent(&job) => {
            limit.keep(|| goes_on(&id), all_followed(client, &id, global)).await
        }
        Until::Followed => limit.keep(|| goes_on(&id), followed(client, &id, global)).await,
    };
    match ended {
        Ok(ended) => job = ended,
        Err(failure) => {
            if failure.code == exit::WAITED_OUT {
                let now = timeout(LAST_LOOK, client.get(&id)).await;
                print(now.ok().and_then(Result::ok).as_ref().unwrap_or(&job))?;
            }
            return Err(failure);
        }
    }
    print(&job)?;
    if output == Output::Table {
        tell(global, &job);
    }
    Ok(job["ending"]["process_exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The job at its end; meanwhile a terminal shows how it stands.
pub(super) async fn ended(client: &Client, job: &Value, global: &Global) -> Result<Value, Failure> {
    let id = job["id"].as_str().unwrap_or_default();
    let progress = Progress::begin(global, job);
    let end = async {
        match progress.is_live() {
            true => client.watched(id, LIVE_PAUSE, |job| progress.show(job)).await,
            false => client.ended(id).await,
        }
    };
    explained(client, id, global, &progress, end).await
}

/// The job at its end, after all of its output: that of each of its tries.
async fn followed(client: &Client, id: &str, global: &Global) -> Result<Value, Failure> {
    if global.output == Output::Table {
        global.note(&format!("job {id}"));
    }
    // A connection that is being opened is large; it is not to be moved with everything around it.
    let end = Box::pin(async {
        let mut told = 0;
        loop {
            // Each stream is that of one try, and a job that waits has its next one followed.
            follow::remote(client, id, 1, None, &mut Sink::beside(global.output)).await?;
            let job = client.get(id).await?;
            if !job["ending"].is_null() {
                return Ok(job);
            }
            let past = job["past_tries"].as_array().map_or(&[][..], Vec::as_slice);
            for past in past.iter().skip(told) {
                let message = past["message"].as_str().unwrap_or_default();
                let line = format!("try of attempt {} ended: {message}; it is tried again", past["attempt"]);
                global.note(&crate::cli::show::printable(&line));
            }
            told = past.len();
        }
    });
    explained(client, id, global, &Progress::hidden(), end).await
}

/// A job for several hosts at its end, after all output of the jobs for its hosts.
async fn all_followed(client: &Client, id: &str, global: &Global) -> Result<Value, Failure> {
    if global.output == Output::Table {
        global.note(&format!("job {id}"));
    }
    let end = Box::pin(async {
        parts::follow(client, id, None, global.output).await?;
        client.ended(id).await
    });
    explained(client, id, global, &Progress::hidden(), end).await
}

/// Does `work`, and says meanwhile why the job waits, if it does.
async fn explained<T>(
    client: &Client,
    id: &str,
    global: &Global,
    progress: &Progress,
    work: impl Future<Output = T>,
) -> T {
    if global.quiet {
        return work.await;
    }
    let ask = async || client.explain(id).await.ok();
    tokio::select! {
        done = work => done,
        never = tell_reasons(ask, |text| progress.say(text)) => match never {},
    }
}

/// Says why a job waits, once for each reason. That it cannot be asked is left to whoever waits for the job to say.
async fn tell_reasons(ask: impl AsyncFn() -> Option<Value>, mut say: impl FnMut(&str)) -> Infallible {
    let (mut said, mut pause) = (None, PATIENCE);
    loop {
        sleep(pause).await;
        let Some(told) = ask().await else { continue };
        let now = reason(&told);
        pause = if now.is_some() { PATIENCE } else { HELD };
        if let Some((code, text)) = &now
            && said.as_ref() != Some(code)
        {
            say(text);
        }
        // One that waits a second time says so, whatever the reason.
        said = now.map(|(code, _)| code);
    }
}

/// Why a job waits: the code, by which one reason is told from another (a sentence has numbers that change all the time),
/// and a line for people.
fn reason(told: &Value) -> Option<(String, String)> {
    let code = told["code"].as_str().filter(|_| told["phase"] == "queued")?;
    let (reason, id) = (told["reason"].as_str()?, told["job"].as_str()?);
    let reason = reason.strip_prefix("it waits").map_or_else(|| format!(": {reason}"), str::to_owned);
    let line = format!("waiting{reason}; see `jobcell job explain {id}`");
    Some((code.to_owned(), crate::cli::show::printable(&line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(phase: &str, code: &str, reason: &str) -> Value {
        json!({"job": "x", "phase": phase, "code": code, "reason": reason})
    }

    #[test]
    fn a_reason_is_a_line_that_cannot_steer_a_terminal() {
        for (sentence, wanted) in [
            ("it waits: a: no\u{1b}[2J room", "waiting: a: no\\u{1b}[2J room; see `jobcell job explain x`"),
            ("it waits (again): b", "waiting (again): b; see `jobcell job explain x`"),
            ("for no reason", "waiting: for no reason; see `jobcell job explain x`"),
        ] {
            assert_eq!(reason(&told("queued", "c", sentence)), Some(("c".to_owned(), wanted.to_owned())));
        }
        assert_eq!((reason(&told("running", "claimed", "agent a has it")), reason(&json!({}))), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_told_once_as_long_as_the_job_waits() {
        let answers = [
            None,
            Some(told("queued", "no_agents", "it waits: 1")),
            Some(told("queued", "no_agents", "it waits: 2")),
            None,
            Some(told("queued", "no_agents", "it waits: 3")),
            Some(told("queued", "no_room", "it waits: 4")),
            Some(told("running", "claimed", "agent a has it")),
            Some(told("queued", "no_room", "it waits (again): 5")),
        ];
        let (asked, began) = (std::cell::Cell::new(0), Instant::now());
        let ask = async || {
            let number = asked.replace(asked.get() + 1);
            match answers.get(number) {
                Some(answer) => answer.clone(),
                None => std::future::pending().await,
            }
        };
        let mut said = Vec::new();
        let say = |text: &str| said.push((began.elapsed().as_secs(), text.split(';').next().unwrap_or("").to_owned()));
        let never = timeout(Duration::from_secs(600), tell_reasons(ask, say)).await;
        assert!(never.is_err());
        let wanted = [(6, "waiting: 1"), (18, "waiting: 4"), (36, "waiting (again): 5")];
        assert_eq!(said, wanted.map(|(at, text)| (at, text.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_counts_from_its_beginning_and_ends_nothing_that_is_done() {
        let limit = Limit::begin(Some(Millis::from_secs(5)));
        let done = async |seconds: u64| {
            let work = async {
                sleep(Duration::from_secs(seconds)).await;
                Ok(seconds)
            };
            limit.keep(|| "it goes on".to_owned(), work).await.map_err(|failure| (failure.code, failure.message))
        };
        assert_eq!(done(4).await, Ok(4));
        assert_eq!(done(4).await, Err((124, "gave up waiting after 5s; it goes on".to_owned())));
        assert_eq!(done(0).await, Ok(0), "what is there already is taken");
        let forever = Limit::begin(None).keep(String::new, async {
            sleep(Duration::from_secs(1_000_000)).await;
            Ok(1)
        });
        assert_eq!(forever.await.map_err(|failure| failure.code), Ok(1));
    }
}

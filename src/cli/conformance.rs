//! `jobcell conformance URL`: what a backend of somebody's own does for an agent, case by case.

use super::client::Client;
use super::{Failure, Global, show};
use crate::backend::conformance::{Desk, Outcome, Seen, Suite, Verdict};
use crate::backend::{Http, HttpSettings};
use crate::job::{JobId, Millis};
use crate::logstore::LogStore;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Calls in a second: the suite makes a few dozen.
const RATE: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// The users' side, over the API.
struct ApiDesk(Client);

impl Desk for ApiDesk {
    fn submit(&self, spec: Value) -> BoxFuture<'_, Result<JobId, String>> {
        Box::pin(async move {
            let job = self.0.submit(&spec).await.map_err(|error| error.to_string())?;
            let id = job["id"].as_str().unwrap_or_default();
            id.parse().map_err(|error: crate::job::BadId| format!("the answer's id: {error}"))
        })
    }

    fn see(&self, id: JobId) -> BoxFuture<'_, Result<Seen, String>> {
        Box::pin(async move {
            let job = self.0.get(&id.to_string()).await.map_err(|error| error.to_string())?;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Ok(Seen { phase: text(&job["phase"]).unwrap_or_default(), cause: text(&job["ending"]["cause"]["code"]) })
        })
    }

    fn cancel(&self, id: JobId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(
            async move { self.0.cancel(&id.to_string(), false).await.map(drop).map_err(|error| error.to_string()) },
        )
    }

    fn output(&self, id: JobId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let (mut all, mut from) = (Vec::new(), 1);
            loop {
                let piece = self.0.logs(&id.to_string(), "stdout", from).await.map_err(|error| error.to_string())?;
                all.extend(piece.bytes);
                if piece.end || piece.next == from {
                    return Ok(all);
                }
                from = piece.next;
            }
        })
    }
}

/// Runs the suite; exits with 1 when a case failed.
pub(super) async fn run(url: &str, patience: Millis, global: &Global) -> Result<u8, Failure> {
    let key = super::given_key::AGENT.read().map_err(Failure::usage)?.ok_or_else(|| {
        Failure::usage("the agent's key has to be in JOBCELL_AGENT_KEY, and the users' key in JOBCELL_API_KEY")
    })?;
    let url = url.trim_end_matches('/').to_owned();
    let client = Client::new(&Global { server: Some(url.clone()), ..global.clone() })?;
    let folder = super::job::Folder::make()?;
    let logs = LogStore::open(&folder.0, 1 << 20).map_err(|error| Failure::unavailable(error.to_string()))?;
    let stop = CancellationToken::new();
    let settings = HttpSettings { name: "backend".to_owned(), url, key, rate: RATE, spool_max: u64::MAX };
    let http = Http::believing(client.tls.clone(), settings, logs.clone(), stop.clone()).map_err(Failure::new)?;
    let suite = Suite::new(Arc::new(http), Arc::new(ApiDesk(client)), logs, patience.as_duration());
    let outcomes = suite.run(|outcome| global.note(&line(outcome))).await;
    stop.cancel();
    let (word, failed) = outcomes.iter().fold((Vec::new(), 0), |(mut all, failed), outcome| {
        let (state, why) = verdict(&outcome.verdict);
        all.push(json!({"case": outcome.name, "rule": outcome.rule, "verdict": state, "why": why}));
        (all, failed + u32::from(matches!(outcome.verdict, Verdict::Failed(_))))
    });
    let skipped = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Skipped(_))).count();
    global.output.print(&json!({"cases": word, "failed": failed}), || {
        format!("{} cases: {failed} failed, {skipped} left out", outcomes.len())
    })?;
    Ok(u8::from(failed > 0))
}

fn verdict(verdict: &Verdict) -> (&'static str, Option<&str>) {
    match verdict {
        Verdict::Passed => ("passed", None),
        Verdict::Skipped(why) => ("skipped", Some(why)),
        Verdict::Failed(how) => ("failed", Some(how)),
    }
}

fn line(outcome: &Outcome) -> String {
    let (state, why) = verdict(&outcome.verdict);
    let why = why.map(|why| format!("\n         {}", show::printable(why))).unwrap_or_default();
    format!("{state:<8} {}: {}{why}", outcome.name, outcome.rule)
}

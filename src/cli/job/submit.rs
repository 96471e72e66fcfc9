//! `jobcell job submit` and `job retry`: a job is taken in, and then watched to its end if that is wanted.

use super::many::{self, Document};
use super::{read_file, tell};
use crate::cli::client::Client;
use crate::cli::follow::{self, Sink};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Global, Output};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// A person who watches sees a new phase this late at most.
const LIVE_PAUSE: Duration = Duration::from_millis(500);

/// What to submit, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct SubmitArgs {
    /// Specs, YAML or JSON, also several in one file (YAML documents, or JSON on each line); - reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    until: UntilArgs,
    /// Two submissions with one key are one job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Two submissions of equal specs are one job
    #[arg(long, conflicts_with = "idempotency_key")]
    dedupe: bool,
    /// Of several, take in those that can be; else it is all or none
    #[arg(long)]
    partial: bool,
}

/// How long a command stays with its job.
#[derive(Debug, Clone, Copy, Args)]
pub(in crate::cli) struct UntilArgs {
    /// Show its output as it comes, then exit with its code
    #[arg(short, long)]
    follow: bool,
    /// Wait for its end, then exit with its code
    #[arg(short, long)]
    wait: bool,
}

/// What a submit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The backend has it.
    Taken,
    Ended,
    /// As `Ended`, with the output as it comes.
    Followed,
}

impl From<UntilArgs> for Until {
    fn from(args: UntilArgs) -> Self {
        match (args.follow, args.wait) {
            (true, _) => Self::Followed,
            (false, true) => Self::Ended,
            (false, false) => Self::Taken,
        }
    }
}

pub(super) async fn run(args: SubmitArgs, global: &Global) -> Result<u8, Failure> {
    let until = Until::from(args.until);
    let mut texts = Vec::with_capacity(args.files.len());
    for file in &args.files {
        texts.push((file.display().to_string(), read_file(file)?));
    }
    // One document goes as it is: the API reads it, and says what is wrong with it.
    if let [(name, text)] = &texts[..]
        && !args.partial
        && !many::has_several(name, text)
    {
        let client = Client::new(global)?;
        let job = client.submit(text.clone(), args.idempotency_key.as_deref(), args.dedupe).await?;
        return see(&client, job, until, global).await;
    }
    if until == Until::Followed {
        return Err(Failure::usage("--follow shows the output of one job; --wait waits for the end of several"));
    }
    if args.idempotency_key.is_some() {
        return Err(Failure::usage(
            "--idempotency-key is for one job; give each spec a key of its own, or use --dedupe",
        ));
    }
    let mut documents: Vec<Document> = Vec::new();
    for (name, text) in &texts {
        documents.extend(many::documents(name, text)?);
    }
    let client = Client::new(global)?;
    many::submit(&client, documents, args.partial, args.dedupe, until == Until::Ended, global).await
}

/// Runs a job again that has ended.
pub(super) async fn retry(id: &str, until: UntilArgs, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    let job = client.retry(id).await?;
    see(&client, job, until.into(), global).await
}

/// Stays with a job that was taken in as long as is wanted, and prints it.
async fn see(client: &Client, mut job: Value, until: Until, global: &Global) -> Result<u8, Failure> {
    let output = global.output;
    let id = job["id"].as_str().unwrap_or_default().to_owned();
    match until {
        Until::Taken => {}
        Until::Ended => {
            let progress = Progress::begin(global, &job);
            job = match progress.is_live() {
                true => client.watched(&id, LIVE_PAUSE, |job| progress.show(job)).await?,
                false => client.ended(&id).await?,
            };
        }
        Until::Followed => {
            if output == Output::Table {
                global.note(&format!("job {id}"));
            }
            follow::remote(client, &id, 1, None, Sink::beside(output)).await?;
            job = client.ended(&id).await?;
        }
    }
    // Where the job's output is on standard output, its id would be in the way.
    if output != Output::Table || until != Until::Followed {
        output.print(&job, || id)?;
    }
    if job["ending"].is_null() || until == Until::Taken {
        return Ok(0);
    }
    if output == Output::Table {
        tell(global, &job);
    }
    Ok(job["ending"]["process_exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

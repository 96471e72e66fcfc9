//! `jobcell job …`

mod allow;
mod artifacts;
mod cancel;
pub(super) mod exec;
pub(super) mod list;
mod many;
mod on;
mod secrets;
mod stay;
mod submit;

use super::client::{Client, own_context};
use super::follow::{self, Sink};
use super::inputs::{InputArgs, Target};
use super::telling::Telling;
use super::{Failure, Global, Output, node, parts, settings, show, terminal};
use crate::backend::{Backend, Local, Unready, Waited};
use crate::config::Config;
use crate::executor::{Arriving, Both};
use crate::job::{AttemptId, Cause, Ending, Job, JobSpec, OwnerId, Problems, Source};
use crate::journal::MemoryJournal;
use crate::logstore::Stream;
use crate::queue::{AnyStore, MemoryStore, Submitted};
use crate::supervise::spawn;
use crate::telemetry::Metrics;
use clap::{Args, Subcommand, ValueEnum};
use secrets::SecretArgs;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A spec is at most two half-megabyte texts; a larger file is no spec.
const MOST_FILE_BYTES: u64 = 16 << 20;
/// For cells whose removal did not work at once.
const SETTLE: Duration = Duration::from_secs(20);

#[expect(clippy::large_enum_variant, reason = "there is one in a run of the program")]
#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Submit jobs
    Submit(submit::SubmitArgs),
    /// Run one command as a job: submit it, show its output, exit with its code
    Exec(exec::ExecArgs),
    /// Run one job here and now, without any server
    Run(RunArgs),
    /// List jobs, newest first
    List(list::ListArgs),
    /// Show a job in full
    Get {
        /// Its id
        id: String,
    },
    /// Say why a job waits, or why it ended as it did
    Explain {
        /// Its id
        id: String,
    },
    /// Print a page about a job: what it was, when, how it ended, what it used, its last lines of output
    Report {
        /// Its id
        id: String,
    },
    /// Run a job again that has ended, as a new job
    Retry {
        /// Its id
        id: String,
        #[command(flatten)]
        until: stay::UntilArgs,
    },
    /// Wait for a job's end, then exit with its code, as `submit --wait` does
    Wait {
        /// Its id
        id: String,
        /// Give up after this time and exit with 124; the job goes on
        #[arg(long, value_name = "TIME")]
        timeout: Option<crate::job::Millis>,
    },
    /// Print a job's output
    Logs {
        /// Its id
        id: String,
        /// Go on until the try has ended that runs now, or will; exits with 0 however it ends (`job wait` has its code)
        #[arg(short, long)]
        follow: bool,
        /// Only one of the streams
        #[arg(long, value_enum)]
        stream: Option<StreamName>,
        /// From this frame on
        #[arg(long, value_name = "SEQ", default_value_t = 1)]
        from: u64,
    },
    /// The files that a job has left
    #[command(subcommand)]
    Artifacts(artifacts::ArtifactsCommand),
    /// Ask for the end of jobs
    Cancel(cancel::CancelArgs),
    /// Remove ended jobs and output that are not to be kept any longer (settings `retention`); the server does it by itself
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The spec, YAML or JSON; - reads standard input
    file: PathBuf,
    #[command(flatten)]
    secrets: SecretArgs,
    /// A place that the job may reach, beside those of its spec, such as pypi.org:443; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    allow: Vec<String>,
    #[command(flatten)]
    inputs: InputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum StreamName {
    Stdout,
    Stderr,
}

pub(super) async fn run(command: JobCommand, global: &Global) -> Result<u8, Failure> {
    match command {
        JobCommand::Run(args) => run_here(&args, settings(global, &[], super::QUIET)?, global).await,
        JobCommand::Submit(args) => submit::run(args, global).await,
        JobCommand::Exec(args) => exec::run(args, global).await,
        JobCommand::List(args) => list::run(args, global).await,
        JobCommand::Get { id } => {
            let client = Client::new(global)?;
            let job = client.get(&id).await?;
            let parts = match parts::is_parent(&job) && global.output == Output::Table {
                true => format!("\n\n{}", parts::table(&parts::of(&client, &id).await?)),
                false => String::new(),
            };
            global.output.print(&job, || show::job(&job).trim_end().to_owned() + &parts)?;
            Ok(0)
        }
        JobCommand::Gc { dry_run } => {
            let removed = Client::new(global)?.collect(dry_run).await?;
            global.output.print(&removed, || show::removed(&removed))?;
            Ok(0)
        }
        JobCommand::Explain { id } => {
            let told = Client::new(global)?.explain(&id).await?;
            global.output.print(&told, || show::explanation(&told))?;
            Ok(0)
        }
        JobCommand::Report { id } => {
            let client = Client::new(global)?;
            match global.output {
                Output::Table => {
                    // A reader that left wants no more.
                    let _ = Sink::as_it_came().write(Stream::Stdout, client.report_page(&id).await?.as_bytes());
                }
                output => output.print(&client.report(&id).await?, String::new)?,
            }
            Ok(0)
        }
        JobCommand::Wait { id, timeout } => {
            let limit = stay::Limit::begin(timeout);
            let client = Client::new(global)?;
            let job = client.get(&id).await?;
            stay::see(&client, job, (stay::Until::Ended, limit), global).await
        }
        JobCommand::Retry { id, until } => submit::retry(&id, until, global).await,
        JobCommand::Logs { id, follow, stream, from } => logs(&Client::new(global)?, &id, follow, stream, from).await,
        JobCommand::Artifacts(command) => artifacts::run(command, global).await,
        JobCommand::Cancel(args) => cancel::run(args, global).await,
    }
}

/// Says how a job ended. That it could not be run as it should have been is an error, which is not kept quiet.
fn tell(global: &Global, job: &Value) {
    match job["ending"]["verdict"].as_str() {
        Some("cell_error" | "lost") => eprintln!("{}", show::ending(job)),
        _ => global.note(&show::ending(job)),
    }
}

async fn logs(client: &Client, id: &str, follow: bool, stream: Option<StreamName>, from: u64) -> Result<u8, Failure> {
    // A wrong id, a wrong key and a server that is away are told at once; a stream is tried again for a while.
    let is_parent = parts::is_parent(&client.get(id).await?);
    if is_parent && from != 1 {
        return Err(Failure::usage(format!(
            "--from counts the frames of one log, and job {id} has a log for each of its hosts: `jobcell job get {id}` names \
             the jobs for them; give it with one of those"
        )));
    }
    if follow {
        let only = stream.map(|stream| match stream {
            StreamName::Stdout => Stream::Stdout,
            StreamName::Stderr => Stream::Stderr,
        });
        if is_parent {
            parts::follow(client, id, only, Output::Table).await?;
            return Ok(0);
        }
        follow::remote(client, id, from, only, &mut Sink::as_it_came()).await?;
        return Ok(0);
    }
    let name = match stream {
        None => "both",
        Some(StreamName::Stdout) => "stdout",
        Some(StreamName::Stderr) => "stderr",
    };
    if is_parent {
        parts::print(client, id, name).await?;
        return Ok(0);
    }
    let (mut next, mut dropped, mut sink) = (from, 0, Sink::as_it_came());
    loop {
        let piece = client.logs(id, name, next).await?;
        let written = sink.write(Stream::Stdout, &piece.bytes);
        // A reader that left (`| head`) wants no more.
        if written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return Ok(0);
        }
        written.map_err(|error| Failure::new(format!("output cannot be written: {error}")))?;
        dropped += piece.dropped;
        if piece.end || piece.next == next {
            break;
        }
        next = piece.next;
    }
    drop(sink);
    if dropped > 0 {
        eprintln!(
            "jobcell: {dropped} bytes are missing in this: they were beyond its limit, or nobody could take them; `jobcell job get {id}` says where"
        );
    }
    Ok(0)
}

pub(super) fn read_file(file: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::usage(format!("{}: {error}", file.display()));
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MOST_FILE_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MOST_FILE_BYTES).read_to_string(&mut text))
    };
    read.map_err(failed)?;
    Ok(text)
}

/// One job through the agent's own code, with a queue in memory and a log in a folder that goes away.
async fn run_here(args: &RunArgs, config: Config, global: &Global) -> Result<u8, Failure> {
    let bad = |problems: Problems| {
        let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
        Failure::usage(format!(
            "the job spec has problems; nothing was created\n{}",
            terminal::lines(&lines.join("\n"))
        ))
    };
    secrets::one_reader(&args.secrets, std::slice::from_ref(&args.file))?;
    let (given, text, rules) = (args.secrets.read()?, read_file(&args.file)?, node::rules(&config));
    let as_it_is = args.secrets.is_empty() && args.allow.is_empty() && args.inputs.is_empty();
    let document = match as_it_is {
        true => None,
        false => Some(many::only(&args.file.display().to_string(), &text)?),
    };
    let document = document.map(|mut document| {
        secrets::put(&mut document, &given);
        allow::add(&mut document, &args.allow);
        document
    });
    let checked = match &document {
        None => JobSpec::from_yaml(&text, &rules),
        Some(document) => JobSpec::check(document, &rules),
    };
    let mut spec = checked.map_err(bad)?;
    if spec.fan_out().is_some() {
        return Err(Failure::usage(
            "the job is for several hosts, and `job run` runs one job: submit it to a server (`jobcell up`), or name one host",
        ));
    }
    let seccomp = node::seccomp(&config)?;
    let inventory = node::inventory(&config)?;
    let gate = node::gate(&config, node::policy(&config)?, inventory.as_ref());
    // A job for another host needs no engine here.
    let engine = match spec.source() {
        Source::Target(_) if inventory.is_none() => {
            return Err(Failure::config(
                "the job has a target, and no inventory says what its host is: set ssh.inventory (docs/ssh.md)",
            ));
        }
        Source::Target(_) => None,
        _ => Some(node::connect(&config).await.map_err(|error| {
            Failure::unavailable(format!(
                "no engine at {}: {}; `jobcell doctor` tells more",
                config.docker.host,
                error.short()
            ))
        })?),
    };
    let folder = Folder::make()?;
    let backend = node::backend(&config, AnyStore::Memory(MemoryStore::new()), &folder.0.join("logs"))?;
    let blobs = node::blobs(&config, &folder.0.join("blobs")).await?;
    if let Some(document) = document.filter(|_| !args.inputs.is_empty()) {
        let document = args.inputs.add_to(document, &Target::Here(&blobs)).await?;
        spec = JobSpec::check(&document, &rules).map_err(bad)?;
    }
    let artifacts = node::artifacts(&config, &blobs);
    backend.keep_artifacts(artifacts.clone(), config.artifacts.keep);
    backend.keep_contents(blobs, config.blobs.keep);
    let spec = backend.know_inputs(spec).await.map_err(|unready| match unready {
        Unready::Problems(problems) => bad(problems),
        Unready::Away(error) => Failure::new(error.to_string()),
    })?;
    let stop = CancellationToken::new();
    let owner = OwnerId::random();
    let executor = engine.map(|engine| {
        Arc::new(node::executor(&config, engine, seccomp, &config.data_dir, owner.clone(), stop.clone()))
    });
    let hosts =
        inventory.map(|inventory| node::hosts(&config, inventory, &owner, &folder.0, stop.clone())).transpose()?;
    let local: Vec<Arc<dyn Backend>> = vec![Arc::new(Local::new(Arc::clone(&backend), &config.agent.name))];
    let (logs, metrics) = (backend.logs().clone(), Arc::new(Metrics::new()));
    let telling = Telling::begin(&config, &owner.to_string(), &metrics);
    backend.tell_traces(&telling.traces);
    let tracing = spawn("traces", Arc::clone(&backend).run_traces(stop.clone()));
    let agent = node::agent(
        &config,
        local,
        logs,
        &owner,
        Both::new(executor.clone().map(Arriving::from), hosts),
        Arc::new(MemoryJournal::default()),
        metrics,
        gate,
        artifacts,
        telling.traces.clone(),
    );
    let mut status = agent.status();
    let (drain, force) = (CancellationToken::new(), CancellationToken::new());
    let agent = spawn("agent", agent.run(drain.clone(), force.clone()));

    // Here nobody waits for another try.
    let submitted = backend
        .submit(spec.once().or_traced(own_context()), None)
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    let Submitted::Created(job) = submitted else { return Err(Failure::new("the job was not taken in")) };
    let interrupted = spawn("interrupts", {
        let (backend, force) = (Arc::clone(&backend), force.clone());
        async move {
            // The first Ctrl-C cancels the job, the second ends its cell at once.
            if tokio::signal::ctrl_c().await.is_ok() {
                let _ = backend.cancel(job.id).await;
                if tokio::signal::ctrl_c().await.is_ok() {
                    force.cancel();
                }
            }
        }
    });
    let watched = tokio::select! {
        watched = watch(&backend, job.id, Sink::beside(global.output)) => watched,
        reason = unavailable(&mut status) => Err(Failure::unavailable(format!("no cell can be made: {reason}"))),
    };
    drain.cancel();
    let _ = agent.await;
    interrupted.abort();
    if let Some(executor) = executor {
        executor.settled(SETTLE).await;
    }
    stop.cancel();
    let _ = tracing.await;
    telling.end().await;
    let job = watched?;
    let ending = job.ending.clone().unwrap_or_else(|| Ending::from(Cause::AgentStopped));
    let shown = serde_json::to_value(&job).map_err(|error| Failure::new(error.to_string()))?;
    if let Some(count) = job.results.artifacts.as_ref().map(|kept| kept.count).filter(|count| *count > 0) {
        global.note(&format!(
            "{count} files of it were fetched, and go with this run; a server keeps them (`jobcell up`, `job submit`)"
        ));
    }
    match global.output {
        Output::Table => tell(global, &shown),
        output => output.print(&shown, String::new)?,
    }
    Ok(ending.process_exit_code)
}

/// Here nobody waits for an engine to come back.
async fn unavailable(status: &mut tokio::sync::watch::Receiver<crate::agent::Status>) -> String {
    let no_cells = |status: &crate::agent::Status| status.unavailable.clone().or_else(|| status.no_cells.clone());
    let reason = status.wait_for(|status| no_cells(status).is_some()).await.ok().and_then(|status| no_cells(&status));
    match reason {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}

/// Prints the job's output until it has ended.
async fn watch(backend: &crate::backend::Embedded, id: crate::job::JobId, mut sink: Sink) -> Result<Job, Failure> {
    let failed = |error: crate::queue::StoreError| Failure::new(error.to_string());
    let mut changes = backend.changes();
    let mut followed = false;
    loop {
        let attempt = AttemptId::new(id, 1);
        if !followed && backend.logs().subscribe(attempt).is_some() {
            follow::local(backend.logs(), attempt, &mut sink).await?;
            followed = true;
        }
        if let Waited::Ended(job) = backend.wait(id, Duration::ZERO).await.map_err(failed)? {
            if !followed {
                follow::local(backend.logs(), attempt, &mut sink).await?;
            }
            return Ok(*job);
        }
        let _ = changes.recv().await;
    }
}

/// A folder that goes away with the value.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn make() -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("jobcell-run-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&dir).map_err(|error| Failure::unavailable(format!("{}: {error}", dir.display())))?;
        Ok(Self(dir))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

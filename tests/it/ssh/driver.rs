//! A job from the executor to its end over its warden's wire, without a queue, a log store and an API around it. Shared with the bench.

use futures_util::StreamExt;
use jobcell::executor::ssh::{SshCell, SshExecutor};
use jobcell::executor::{Cell, CellOrder, Executor, Link, Prepared};
use jobcell::job::{AttemptId, JobId, JobSpec, Millis, Program, SpecRules, UnixMillis};
use jobcell::protocol::wire::{Decoder, Exit, FromWarden, ToWarden, VERSION};
use serde_json::Value;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// What a job may have on its way, as the agent says it.
pub(crate) const WINDOW: u32 = 960 * 1024;

/// A checked spec.
pub(crate) fn spec(document: &Value) -> Arc<JobSpec> {
    Arc::new(JobSpec::check(document, &SpecRules::default()).unwrap_or_else(|problems| panic!("{problems}")))
}

/// A job that was given to its warden.
pub(crate) struct Driven {
    cell: SshCell,
    pub(crate) link: Link,
    decoder: Decoder,
}

impl Driven {
    /// Begins one. Errors: a sentence.
    pub(crate) async fn begin(executor: &SshExecutor, spec: &Arc<JobSpec>) -> Result<Self, String> {
        let Program::Command(argv) = spec.program() else { return Err("a command is wanted".to_owned()) };
        let order = CellOrder {
            attempt: AttemptId::new(JobId::new(UnixMillis::now()), 1),
            spec: Arc::clone(spec),
            image: String::new(),
            argv: argv.clone(),
            grace: Millis::from_secs(1),
            secrets: Vec::new(),
            inputs: None,
            lease: Millis::from_secs(60),
        };
        let made = executor.acquire(&order, &Prepared::default()).await;
        let (cell, link) = made.map_err(|error| format!("{error:?}"))?;
        let (mut said, mut head) = (Vec::new(), Vec::new());
        let attempt = order.attempt.to_string();
        ToWarden::Attach { min_version: VERSION, max_version: VERSION, attempt, stored: 0, window: WINDOW }
            .encode(1, &mut said);
        cell.cell_spec().encode(&mut head);
        ToWarden::SpecChunk { section: 0, offset: 0, bytes: head.clone() }.encode(1, &mut said);
        ToWarden::commit(&head, &[], &[]).encode(1, &mut said);
        let mut driven = Self { cell, link, decoder: Decoder::new() };
        driven.say(&said).await?;
        Ok(driven)
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.link.input.write_all(bytes).await.map_err(|error| error.to_string())?;
        self.link.input.flush().await.map_err(|error| error.to_string())
    }

    /// Reads to its end. Errors: there is none.
    pub(crate) async fn exit(&mut self) -> Result<Exit, String> {
        loop {
            let bytes = self.link.output.next().await.ok_or("the link ended")??;
            self.decoder.feed(&bytes);
            while let Some(frame) = self.decoder.next() {
                match FromWarden::decode(&frame).map_err(|error| error.to_string())? {
                    FromWarden::Exit(exit) => return Ok(exit),
                    FromWarden::Fault { text } => return Err(text),
                    _ => {}
                }
            }
        }
    }

    /// Lets its warden go, and removes what is left.
    pub(crate) async fn close(mut self) -> Result<(), String> {
        let mut said = Vec::new();
        ToWarden::Close.encode(1, &mut said);
        self.say(&said).await?;
        drop(self.link);
        self.cell.destroy().await;
        Ok(())
    }
}

/// Runs one that succeeds.
pub(crate) async fn run_one(executor: &SshExecutor, spec: &Arc<JobSpec>) -> Result<(), String> {
    let mut driven = Driven::begin(executor, spec).await?;
    let exit = driven.exit().await?;
    driven.close().await?;
    if exit.code == 0 { Ok(()) } else { Err(format!("{exit:?}")) }
}

//! `jobcell job submit` and `job retry`: a job is taken in, and then watched to its end if that is wanted.

use super::allow;
use super::many::{self, Document};
use super::on::OnArgs;
use super::read_file;
use super::secrets::{self, SecretArgs};
use super::stay::{Until, UntilArgs, see};
use crate::cli::client::Client;
use crate::cli::inputs::{InputArgs, Target};
use crate::cli::{Failure, Global};
use clap::Args;
use std::path::PathBuf;

/// What to submit, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct SubmitArgs {
    /// Specs, YAML or JSON, also several in one file (YAML documents, or JSON on each line); - reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    until: UntilArgs,
    /// Two submissions with one key are one job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Two submissions of equal specs are one job
    #[arg(long, conflicts_with = "idempotency_key")]
    dedupe: bool,
    #[command(flatten)]
    on: OnArgs,
    #[command(flatten)]
    secrets: SecretArgs,
    /// Of several, take in those that can be; else it is all or none
    #[arg(long)]
    partial: bool,
    /// A place that the jobs may reach, beside those of their specs, such as pypi.org:443; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    allow: Vec<String>,
}

pub(super) async fn run(args: SubmitArgs, global: &Global) -> Result<u8, Failure> {
    let (until, limit) = args.until.read()?;
    secrets::one_reader(&args.secrets, &args.files)?;
    let given = args.secrets.read()?;
    let mut texts = Vec::with_capacity(args.files.len());
    for file in &args.files {
        texts.push((file.display().to_string(), read_file(file)?));
    }
    // One document goes as it is: the API reads it, and says what is wrong with it.
    if args.secrets.is_empty()
        && args.allow.is_empty()
        && args.inputs.is_empty()
        && args.on.target().is_none()
        && let [(name, text)] = &texts[..]
        && !args.partial
        && !many::has_several(name, text)
    {
        let client = Client::new(global)?;
        let job = client.submit_yaml(text.clone(), args.idempotency_key.as_deref(), args.dedupe).await?;
        return see(&client, job, (until, limit), global).await;
    }
    let mut documents: Vec<Document> = Vec::new();
    for (name, text) in &texts {
        documents.extend(many::documents(name, text)?);
    }
    for document in &mut documents {
        secrets::put(&mut document.spec, &given);
        allow::add(&mut document.spec, &args.allow);
        args.on.put(&mut document.spec);
    }
    if let [document] = &documents[..]
        && !args.partial
    {
        let client = Client::new(global)?;
        let spec = args.inputs.add_to(document.spec.clone(), &Target::Server(&client)).await?;
        let job = client.submit_keyed(&spec, args.idempotency_key.as_deref(), args.dedupe).await?;
        return see(&client, job, (until, limit), global).await;
    }
    if !args.inputs.is_empty() {
        return Err(Failure::usage("--file and --input are for one job; name the inputs of several in their specs"));
    }
    if until == Until::Followed {
        return Err(Failure::usage("--follow shows the output of one job; --wait waits for the end of several"));
    }
    if args.idempotency_key.is_some() {
        return Err(Failure::usage(
            "--idempotency-key is for one job; give each spec a key of its own, or use --dedupe",
        ));
    }
    let client = Client::new(global)?;
    let wait = (until == Until::Ended).then_some(limit);
    many::submit(&client, documents, args.partial, args.dedupe, wait, global).await
}

/// Runs a job again that has ended.
pub(super) async fn retry(id: &str, until: UntilArgs, global: &Global) -> Result<u8, Failure> {
    let until = until.read()?;
    let client = Client::new(global)?;
    let job = client.retry(id).await?;
    see(&client, job, until, global).await
}

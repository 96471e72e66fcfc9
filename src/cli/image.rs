//! `jobcell image …`: the images of this host's engine, as its agent sees them. Nothing is asked of an agent: the settings, the engine and
//! what is remembered in the data directory say it all, whether an agent runs or not.

use super::home::Home;
use super::{Failure, Global, QUIET, node, settings, show};
use crate::executor::docker::{Images, Judged};
use crate::job::Ending;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A terminal is told so often how far a pull is.
const TOLD_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List the images of the engine: size, last use, who brought them, and whether they are in use
    Ls,
    /// Get an image, as a job with `pull: always` would: with the logins of the settings, and remembered as pulled by this host's agent
    Pull {
        /// Its name: name:tag or name@sha256:…
        image: String,
    },
    /// Remove images that the agent pulled and nothing uses, when there is less room than the settings want
    Gc(GcArgs),
}

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Show what would be removed and why, and remove nothing; also while an agent runs
    #[arg(long)]
    dry_run: bool,
    /// As if there were no room at all
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(command: ImageCommand, global: &Global) -> Result<u8, Failure> {
    let config = settings(global, &[], QUIET)?;
    // A removal and an agent that begins a job in the same image would not know of each other.
    let _home = match &command {
        ImageCommand::Gc(GcArgs { dry_run: false, .. }) => {
            let held = "its agent removes images by itself, when there is less room than the settings want; stop it to remove them by \
                        hand, or give --dry-run to see what would go";
            Some(Home::take(&config.data_dir, held)?)
        }
        _ => None,
    };
    let away =
        |reason: String| Failure::unavailable(format!("{}: {reason}; `jobcell doctor` tells more", config.docker.host));
    let engine = node::connect(&config).await.map_err(|error| away(error.short()))?;
    let images = node::images(&config, engine, &config.data_dir);
    match command {
        ImageCommand::Ls => {
            let found = images.list(false).await.map_err(|error| away(error.short()))?;
            let document: Vec<Value> = found.iter().map(image).collect();
            global.output.print(&json!({ "images": document }), || list(&found))?;
            Ok(0)
        }
        ImageCommand::Pull { image } => pull(&images, &image, global).await,
        ImageCommand::Gc(GcArgs { dry_run: true, all }) => {
            let found = images.list(all).await.map_err(|error| away(error.short()))?;
            let rows =
                found.iter().map(|one| (one, if one.goes { "would_be_removed" } else { "kept" }, one.why.as_str()));
            told(&rows.collect::<Vec<_>>(), true, global)
        }
        ImageCommand::Gc(GcArgs { dry_run: false, all }) => {
            let gone = images.collect(all).await.map_err(|error| away(error.short()))?;
            let rows = gone.iter().map(|(one, removed)| match removed {
                Ok(()) => (one, "removed", one.why.as_str()),
                Err(reason) => (one, "failed", reason.as_str()),
            });
            told(&rows.collect::<Vec<_>>(), false, global)
        }
    }
}

async fn pull(images: &Images, name: &str, global: &Global) -> Result<u8, Failure> {
    let live = std::io::stderr().is_terminal();
    let last = Mutex::new(None::<Instant>);
    let tell = |reached: String| {
        // Of a pipe nobody reads how far it was a second ago.
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if live && last.is_none_or(|last| last.elapsed() >= TOLD_EVERY) {
            *last = Some(Instant::now());
            global.note(&show::printable(&reached));
        }
    };
    match images.pull(name, &tell).await {
        Ok(image) => {
            let digest = image.digest.clone().unwrap_or_else(|| image.id.clone());
            global.output.print(&json!(image), || show::printable(&digest))?;
            Ok(0)
        }
        Err(cause) => {
            let ending = Ending::from(cause);
            let hint = ending.hint.map(|hint| format!("\n  {hint}")).unwrap_or_default();
            Err(Failure::new(format!("{}{hint}", ending.message)))
        }
    }
}

fn image(one: &Judged) -> Value {
    json!({
        "id": one.id, "names": one.names, "bytes": one.size, "last_used": one.last_used,
        "pulled_here": one.ours, "in_use": one.in_use,
    })
}

/// The first name that a person knows it by.
fn name(one: &Judged) -> String {
    one.names.first().cloned().unwrap_or_else(|| short(&one.id))
}

fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn list(found: &[Judged]) -> String {
    let row = |one: &Judged| {
        let used = one.last_used.map_or_else(|| "-".to_owned(), |at| at.to_string());
        vec![name(one), short(&one.id), mib(one.size), used, yes(one.ours), yes(one.in_use)]
    };
    show::table(&["NAME", "ID", "SIZE", "LAST USED", "PULLED HERE", "IN USE"], found.iter().map(row).collect())
}

/// Prints what became of images, or would; fails when one that was to go did not.
fn told(rows: &[(&Judged, &str, &str)], dry_run: bool, global: &Global) -> Result<u8, Failure> {
    let failed = rows.iter().any(|(_, result, _)| *result == "failed");
    let document = rows.iter().map(|(one, result, why)| {
        let mut document = image(one);
        document["result"] = json!(result);
        document["why"] = json!(why);
        document
    });
    let document = json!({"dry_run": dry_run, "images": document.collect::<Vec<_>>()});
    global.output.print(&document, || {
        if rows.is_empty() {
            return "nothing has to go".to_owned();
        }
        let row = |(one, result, why): &(&Judged, &str, &str)| {
            vec![name(one), mib(one.size), result.replace('_', " "), (*why).to_owned()]
        };
        show::table(&["NAME", "SIZE", "RESULT", "WHY"], rows.iter().map(row).collect())
    })?;
    Ok(u8::from(failed))
}

//! `jobcell agent sweep`: removes by hand what an installation has left on its engine, while no agent of it runs. One that runs
//! sweeps by itself.
//!
//! Nothing of the data directory is changed: the journal is read from a copy, so that the next start finds it as the last one left it.

use super::home::Home;
use super::{Failure, Global, QUIET, node, settings, show};
use crate::executor::docker::{Leftover, Scope, find_leftovers, remove_leftover};
use crate::job::{AttemptId, OwnerId, UnixMillis};
use crate::journal::{Journal, Opened, SqliteJournal, Stage};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Everything that carries this owner's label, for an installation whose data directory is gone
    #[arg(long, value_name = "ID")]
    owner: Option<OwnerId>,
    /// With --owner: also while containers of it run
    #[arg(long, requires = "owner")]
    force: bool,
}

/// What became of something that was found.
enum Fate {
    Kept,
    WouldBeRemoved,
    Removed,
    Failed(String),
}

impl Fate {
    fn name(&self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::WouldBeRemoved => "would_be_removed",
            Self::Removed => "removed",
            Self::Failed(_) => "failed",
        }
    }
}

pub(super) async fn run(args: SweepArgs, global: &Global) -> Result<u8, Failure> {
    let config = settings(global, &[], QUIET)?;
    // Held until everything is done: no agent begins meanwhile.
    let (scope, _home) = match args.owner.clone() {
        Some(owner) => {
            if super::home::owner_of(&config.data_dir).is_some_and(|here| here == owner.to_string()) {
                let dir = config.data_dir.display();
                return Err(Failure::usage(format!(
                    "--owner {owner}: its data directory is {dir}, and what it holds is to be kept; leave --owner out"
                )));
            }
            (Scope { owner, open: BTreeSet::new(), wardens: false }, None)
        }
        None => {
            let held = "its agent sweeps by itself, every ten minutes; stop it to sweep by hand";
            let home = Home::take(&config.data_dir, held)?;
            let open = open_attempts(&home).await?;
            (Scope { owner: home.owner.clone(), open, wardens: true }, Some(home))
        }
    };
    let host = &config.docker.host;
    let away = |reason: String| Failure::unavailable(format!("{host}: {reason}; `jobcell doctor` tells more"));
    let engine = node::connect(&config).await.map_err(|error| away(error.short()))?;
    let found = find_leftovers(&engine, &scope).await.map_err(|error| away(error.short()))?;
    let running = found.iter().filter(|one| one.running).count();
    if args.owner.is_some() && running > 0 && !args.force && !args.dry_run {
        return Err(Failure::new(format!(
            "{running} containers of owner {} run: an agent may live that has them, and nothing was removed; stop it, or give \
             --force to end them. --dry-run shows them",
            scope.owner
        )));
    }
    let mut items = Vec::with_capacity(found.len());
    for one in found {
        let fate = if one.kept {
            Fate::Kept
        } else if args.dry_run {
            Fate::WouldBeRemoved
        } else {
            remove_leftover(&engine, &one).await.map_or_else(Fate::Failed, |()| Fate::Removed)
        };
        items.push((one, fate));
    }
    let document = document(&scope.owner, args.dry_run, &items);
    global.output.print(&document, || table(&items, &scope.owner))?;
    Ok(u8::from(items.iter().any(|(_, fate)| matches!(fate, Fate::Failed(_)))))
}

/// Attempts that the journal has not seen end.
async fn open_attempts(home: &Home) -> Result<BTreeSet<AttemptId>, Failure> {
    let journal = home.path("journal.db");
    if !journal.exists() {
        return Ok(BTreeSet::new());
    }
    let copy = home.path("sweep.tmp");
    let open = read_copy(&journal, &copy).await;
    let _ = std::fs::remove_dir_all(&copy);
    open
}

async fn read_copy(journal: &Path, copy: &Path) -> Result<BTreeSet<AttemptId>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::unavailable(format!(
            "{}: cannot be copied to be read: {error}; nothing was removed",
            journal.display()
        ))
    };
    // What a sweep has left that was ended in the middle.
    let _ = std::fs::remove_dir_all(copy);
    std::fs::DirBuilder::new().mode(0o700).create(copy).map_err(failed)?;
    for end in ["", "-wal", "-shm"] {
        let name = format!("journal.db{end}");
        match std::fs::copy(journal.with_file_name(&name), copy.join(&name)) {
            Err(error) if end.is_empty() || error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let unusable = |error: crate::journal::JournalError| Failure::unavailable(format!("{error}; nothing was removed"));
    let Opened { journal: opened, damage } =
        SqliteJournal::open(&copy.join("journal.db"), UnixMillis::now()).map_err(unusable)?;
    if !damage.is_empty() {
        return Err(Failure::unavailable(format!(
            "{} is damaged, and nobody knows what is to be kept; nothing was removed. Start the agent: it says what of it is lost, \
             goes on with the rest, and sweeps by itself",
            journal.display()
        )));
    }
    let entries = opened.entries().await.map_err(unusable)?;
    let open = entries.into_iter().filter(|entry| !matches!(entry.stage, Stage::Ended(_)));
    Ok(open.map(|entry| entry.key.attempt).collect())
}

fn why(one: &Leftover, fate: &Fate) -> String {
    match fate {
        Fate::Failed(reason) => reason.clone(),
        _ => one.why.clone(),
    }
}

fn document(owner: &OwnerId, dry_run: bool, items: &[(Leftover, Fate)]) -> Value {
    let found = items.iter().map(|(one, fate)| {
        json!({"kind": one.kind, "name": one.name, "running": one.running, "result": fate.name(), "why": why(one, fate)})
    });
    json!({"owner": owner.to_string(), "dry_run": dry_run, "found": found.collect::<Vec<_>>()})
}

fn table(items: &[(Leftover, Fate)], owner: &OwnerId) -> String {
    if items.is_empty() {
        return format!("nothing of owner {owner} is left");
    }
    let row = |(one, fate): &(Leftover, Fate)| {
        let kind = format!("{:?}", one.kind).to_lowercase();
        let running = if one.running { "it runs; " } else { "" };
        let why = format!("{running}{}", why(one, fate));
        vec![kind, one.name.clone(), fate.name().replace('_', " "), why]
    };
    show::table(&["KIND", "NAME", "RESULT", "WHY"], items.iter().map(row).collect())
}

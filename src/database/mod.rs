//! SQLite files: opened and looked at, taken to the schema of today, and worked on by one thread each.
//!
//! Owns what every file of ours needs, whatever is in it: whose it is, what counts as damage, steps from older schemas with
//! a backup, and a thread that takes the commands that wait into one transaction. Must never know what a file is about.

mod aside;
mod copy;
mod log;
mod migrate;
mod open;
mod worker;

pub use aside::move_aside;
pub use copy::{check, copy, fold_log, read_only};
pub use log::lost_end;
pub use migrate::Step;
pub use open::{Kind, Thoroughness, open, refused};
pub use worker::{Durability, Poster, Worker};

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A file, or a piece of work on it, that failed. Whoever owns the file turns it into an error of their own.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("{path}: {reason}; {fix}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        obstacle: Obstacle,
        /// The same for people.
        reason: String,
        /// What to do.
        fix: Cow<'static, str>,
    },
    /// The database refused, or the transaction failed: nothing was done.
    #[error("{0}")]
    Refused(String),
    /// The thread has ended.
    #[error("closed")]
    Closed,
}

/// What is in the way of opening a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// What is in it cannot be trusted, or it is no database at all.
    Damaged,
    /// It is a sound database of another program.
    Foreign,
    /// A newer version of this program wrote it.
    Newer,
    /// Something around it: the folder, the disk, another process.
    Outside,
}

/// The path with something behind it: SQLite's logs, backups and damaged files lie beside the file.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

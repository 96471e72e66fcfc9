//! Archives from strangers, read as a stream into plain files, folders and links, or refused by name.
//!
//! Owns what an archive may hold and make. Must never touch a file system: what is read goes to a [`Sink`]. Nothing is trusted: each
//! length, name, type and mode is looked at before anything of the entry goes on, and what the whole may make is bounded
//! ([`Bounds`]); memory is the same for every archive.

#[cfg(test)]
pub(crate) mod crafted;
mod packed;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

pub use tree::{Bounds, Contents, Tree};

use std::io::{self, Read};

/// Takes what an archive makes, in an order in which it can be made: each folder before what is in it.
pub trait Sink {
    /// A folder.
    fn folder(&mut self, path: &str) -> io::Result<()>;
    /// A file of so many bytes, which follow by [`data`](Self::data).
    fn file(&mut self, path: &str, executable: bool, bytes: u64) -> io::Result<()>;
    /// More of the last file.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// A symbolic link, whose target is inside the workspace.
    fn link(&mut self, path: &str, target: &str) -> io::Result<()>;
}

/// Takes nothing: for those who only want to know whether an archive is good.
#[derive(Debug)]
pub struct Nowhere;

impl Sink for Nowhere {
    fn folder(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn file(&mut self, _: &str, _: bool, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn data(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn link(&mut self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Why an archive is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason} ({code})", if entry.is_empty() { String::new() } else { format!("`{entry}` ") })]
pub struct Refusal {
    /// The stable code.
    pub code: &'static str,
    /// Which entry, as it can be shown; empty for the archive as a whole.
    pub entry: String,
    /// The rest of the sentence that the entry begins.
    pub reason: String,
}

impl Refusal {
    fn whole(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, entry: String::new(), reason: reason.into() }
    }

    fn of(entry: &str, code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, entry: crate::job::shown(entry), reason: reason.into() }
    }
}

/// Why an archive was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The archive is not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Where it comes from, or where it goes to, failed.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Reads an archive, plain or packed by zstd, as it was made for `folder` (`.` is the workspace), into `sink`. `tree` knows what is in the
/// workspace already, and what more there may be. The source is read to its end.
pub fn unpack(source: impl Read, folder: &str, tree: &mut Tree, sink: &mut impl Sink) -> Result<(), Unread> {
    let prefix = if folder == "." { String::new() } else { format!("{folder}/") };
    if folder != "." {
        tree.folder(folder, sink)?;
    }
    let most = tree.bounds().most_read();
    tar::read(&mut packed::Source::open(source, most)?, &prefix, tree, sink)
}

//! What is in a workspace, and what more may come: one tree for all inputs of a job.
//!
//! Keeps a hash of each path and not the path, so that a hundred thousand long names are a few megabytes. Two paths with one hash
//! would be told as a duplicate; the hashes are keyed at random, so nobody can look for such names, and by chance it does not happen.

use super::{Refusal, Sink, Unread};
use crate::job::{MAX_INPUT_ENTRIES, in_pages, input_path_fault};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Longest target of a link.
const MAX_TARGET: usize = 1024;
/// What an archive needs beside its contents: headers, padding, long names.
const HEADERS: u64 = 256 << 20;

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Files, folders and links.
    pub entries: u64,
    /// What files take of a workspace, in whole pages.
    pub bytes: u64,
}

impl Bounds {
    /// What no workspace has room for.
    pub const MOST: Self = Self { entries: MAX_INPUT_ENTRIES, bytes: 64 << 30 };

    pub(super) fn most_read(self) -> u64 {
        self.bytes.saturating_add(HEADERS)
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Files, folders and links.
    pub entries: u64,
    /// What files take of a workspace, in whole pages.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    Link,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    kind: Kind,
    /// Of the path as it is written; the key is that of its small letters.
    exact: u64,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    bounds: Bounds,
    contents: Contents,
    known: HashMap<u64, Known>,
    hashes: RandomState,
}

impl Tree {
    /// Nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, contents: Contents::default(), known: HashMap::new(), hashes: RandomState::new() }
    }

    /// How much there may be.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How much there is.
    pub fn contents(&self) -> Contents {
        self.contents
    }

    /// A folder, which may be there already.
    pub fn folder(&mut self, path: &str, sink: &mut impl Sink) -> Result<(), Unread> {
        self.enter(path, Kind::Folder, 0, sink)?;
        Ok(())
    }

    /// A file of so many bytes.
    pub fn file(&mut self, path: &str, executable: bool, bytes: u64, sink: &mut impl Sink) -> Result<(), Unread> {
        self.enter(path, Kind::File, bytes, sink)?;
        Ok(sink.file(path, executable, bytes)?)
    }

    /// A symbolic link. Its target goes up first, if at all, and never out of the workspace: so wherever other links lead, following this
    /// one stays inside.
    pub fn link(&mut self, path: &str, target: &str, sink: &mut impl Sink) -> Result<(), Unread> {
        let refuse = |code, reason: String| Err(Refusal::of(path, code, reason).into());
        if target.is_empty() || target.len() > MAX_TARGET || target.chars().any(char::is_control) {
            return refuse("bad_link", "is a link to what is no path".to_owned());
        }
        if target.starts_with('/') {
            return refuse(
                "link_outside",
                format!("is a link to `{}`, outside the workspace", crate::job::shown(target)),
            );
        }
        let mut above = path.matches('/').count();
        let mut down = false;
        for name in target.split('/').filter(|name| !matches!(*name, "" | ".")) {
            match (name, down, above.checked_sub(1)) {
                ("..", false, Some(fewer)) => above = fewer,
                ("..", _, _) => {
                    return refuse(
                        "link_outside",
                        format!("is a link to `{}`, which may leave the workspace", crate::job::shown(target)),
                    );
                }
                _ => down = true,
            }
        }
        self.enter(path, Kind::Link, 0, sink)?;
        Ok(sink.link(path, target)?)
    }

    /// Enters what is new: the folders on the way, then the thing itself.
    fn enter(&mut self, path: &str, kind: Kind, bytes: u64, sink: &mut impl Sink) -> Result<(), Unread> {
        if let Some((code, reason)) = input_path_fault(path) {
            return Err(Refusal::of(path, code, reason).into());
        }
        for (at, _) in path.match_indices('/') {
            self.one(&path[..at], Kind::Folder, path, sink)?;
        }
        let taken = self.contents.bytes.saturating_add(in_pages(bytes));
        if taken > self.bounds.bytes {
            let reason = format!(
                "does not fit: with it there are {taken} bytes of files, and there may be {}",
                self.bounds.bytes
            );
            return Err(Refusal::of(path, "too_large", reason).into());
        }
        self.one(path, kind, path, sink)?;
        self.contents.bytes = taken;
        Ok(())
    }

    fn one(&mut self, path: &str, kind: Kind, whole: &str, sink: &mut impl Sink) -> Result<(), Unread> {
        let exact = self.hashes.hash_one(path);
        let refuse = |code, reason: String| Err(Refusal::of(whole, code, reason).into());
        match self.known.get(&self.hashes.hash_one(path.to_lowercase())) {
            None => {}
            Some(known) if known.exact != exact => {
                return refuse(
                    "case_clash",
                    format!("differs from another path in the case of letters only, at `{}`", crate::job::shown(path)),
                );
            }
            Some(Known { kind: Kind::Folder, .. }) if kind == Kind::Folder => return Ok(()),
            Some(known) if path.len() < whole.len() => {
                return match known.kind {
                    Kind::Link => {
                        refuse("through_link", format!("goes through the link `{}`", crate::job::shown(path)))
                    }
                    _ => refuse("through_file", format!("goes through the file `{}`", crate::job::shown(path))),
                };
            }
            Some(_) => return refuse("duplicate", "is there twice".to_owned()),
        }
        self.contents.entries += 1;
        if self.contents.entries > self.bounds.entries {
            return refuse(
                "too_many",
                format!("is one too many: there may be {} files and folders", self.bounds.entries),
            );
        }
        self.known.insert(self.hashes.hash_one(path.to_lowercase()), Known { kind, exact });
        if kind == Kind::Folder { Ok(sink.folder(path)?) } else { Ok(()) }
    }
}

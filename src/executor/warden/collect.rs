//! Which files that a job leaves are fetched, in which order, and what becomes of each. Pure: what the warden says goes in, what to ask
//! it and what to do with bytes comes out.
//!
//! First the whole list, page by page, then the files in its order, a few requests ahead and half a megabyte at most. What comes from
//! a warden is believed about its own cell only: paths are looked at, sizes are held to the limits, what was not asked for is a fault.

use crate::job::{ArtifactProblem, ArtifactRule, Artifacts, ByteSize, Millis, UnixMillis, is_artifact_path};
use crate::protocol::wire::{self, Entry, EntryKind, MOST_PIECE, Page, Piece, Stamp, ToWarden};
use std::collections::VecDeque;

/// Bytes that are asked for and have not come: so much is before a ping's answer, at most.
const WINDOW_BYTES: u64 = 8 * MOST_PIECE as u64;
/// Bytes of one request, which are answered by as many pieces as they need: a request costs the transport as much as a piece.
const READ_BYTES: u64 = 2 * MOST_PIECE as u64;
/// Requests under way; a warden keeps twice as many.
const WINDOW_REQUESTS: usize = 32;
/// A list of more is no cell's: a workspace has no more files by far.
const MOST_ENTRIES: u64 = 1 << 33;

/// What an agent keeps of one job, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectLimits {
    /// One file.
    pub max_size: ByteSize,
    /// All files.
    pub max_total: ByteSize,
    /// Files.
    pub max_count: u64,
    /// For all of it.
    pub timeout: Millis,
}

/// A file to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: String,
    pub(super) mode: u16,
    pub(super) modified_at: UnixMillis,
    stamp: Stamp,
    rules: u64,
    may_change: bool,
}

impl Wanted {
    pub(super) fn size(&self) -> u64 {
        self.stamp.size
    }

    pub(super) fn may_change(&self) -> bool {
        self.may_change
    }
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Do {
    /// Send this to the warden.
    Send(ToWarden),
    /// A file begins.
    Begin(Wanted),
    /// More of it.
    Bytes(Vec<u8>),
    /// It is whole: keep it.
    Keep,
    /// It is not kept.
    Drop,
    /// There are no more.
    Done,
}

/// A request under way.
#[derive(Debug)]
struct Flight {
    number: u32,
    file: usize,
    offset: u64,
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Listing,
    Fetching,
    Done,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Collector {
    rules: Vec<ArtifactRule>,
    limits: CollectLimits,
    stage: Stage,
    listed: u64,
    wanted: Vec<Wanted>,
    total: u64,
    /// By rule: files that are to be fetched.
    taken: Vec<u64>,
    /// Rules that something was found for, and those of which something that counts is not kept.
    found: u64,
    spoiled: u64,
    /// Rules of which something is not kept, or may not be, and the job can do nothing about it.
    ours: u64,
    /// There are folders that nobody has looked into.
    unseen: bool,
    /// By rule and in all: how many more than may be kept.
    beyond: Vec<u64>,
    beyond_all: u64,
    /// The file that is received, and whether it was begun.
    file: usize,
    begun: bool,
    received: u64,
    /// The file whose part is asked for next, and where.
    next: (usize, u64),
    flights: VecDeque<Flight>,
    number: u32,
    pub(super) told: Artifacts,
}

impl Collector {
    pub(super) fn new(rules: Vec<ArtifactRule>, limits: CollectLimits) -> Self {
        let count = rules.len();
        Self {
            rules,
            limits,
            stage: Stage::Listing,
            listed: 0,
            wanted: Vec::new(),
            total: 0,
            taken: vec![0; count],
            found: 0,
            spoiled: 0,
            ours: 0,
            unseen: false,
            beyond: vec![0; count],
            beyond_all: 0,
            file: 0,
            begun: false,
            received: 0,
            next: (0, 0),
            flights: VecDeque::new(),
            number: 0,
            told: Artifacts::default(),
        }
    }

    /// Begins, or goes on over a new link: what was under way is asked for again, from behind what has come.
    pub(super) fn begin(&mut self) -> Vec<Do> {
        self.flights.clear();
        self.next = (self.file, self.received);
        match self.stage {
            Stage::Listing => vec![Do::Send(ToWarden::List { from: self.listed })],
            Stage::Fetching => self.ask(true),
            Stage::Done => Vec::new(),
        }
    }

    /// Asks for more, unless there is no room for it.
    pub(super) fn ask(&mut self, room: bool) -> Vec<Do> {
        let mut todo = Vec::new();
        if self.stage != Stage::Fetching {
            return todo;
        }
        while room && self.flights.len() < WINDOW_REQUESTS {
            let (file, offset) = self.next;
            let Some(wanted) = self.wanted.get(file) else { break };
            let left = wanted.stamp.size.saturating_sub(offset).min(READ_BYTES);
            let under_way: u64 = self.flights.iter().map(|flight| flight.left).sum();
            if under_way + left > WINDOW_BYTES {
                break;
            }
            self.number = self.number.wrapping_add(1);
            let (number, path) = (self.number, wanted.path.clone().into_bytes());
            self.flights.push_back(Flight { number, file, offset, left });
            let len = u32::try_from(left).unwrap_or(u32::MAX);
            todo.push(Do::Send(ToWarden::Read { number, offset, len, path }));
            let end = offset + left;
            self.next = if end >= wanted.stamp.size { (file + 1, 0) } else { (file, end) };
        }
        if self.file >= self.wanted.len() {
            self.finish();
            todo.push(Do::Done);
        }
        todo
    }

    /// Takes a page. Errors: it was not asked for.
    #[expect(clippy::needless_pass_by_value, reason = "as it came from the wire; nobody else needs it")]
    pub(super) fn page(&mut self, page: Page) -> Result<Vec<Do>, String> {
        let empty = page.entries.is_empty() && !page.end;
        if self.stage != Stage::Listing || page.from != self.listed || empty || self.listed > MOST_ENTRIES {
            return Err("it sends a list that was not asked for".to_owned());
        }
        self.listed += page.entries.len() as u64;
        for entry in &page.entries {
            self.entry(entry);
        }
        if !page.end {
            return Ok(vec![Do::Send(ToWarden::List { from: self.listed })]);
        }
        self.stage = Stage::Fetching;
        self.too_many();
        Ok(self.ask(true))
    }

    fn entry(&mut self, entry: &Entry) {
        let mine = entry.rules & self.all_rules();
        if mine == 0 {
            return;
        }
        let code = |error: u64| std::io::Error::from_raw_os_error(i32::try_from(error).unwrap_or_default()).to_string();
        let problem = match entry.kind {
            EntryKind::File => None,
            EntryKind::Link => Some(("link", "is a symbolic link; links are not followed".to_owned())),
            EntryKind::Other => Some(("not_a_file", "is a pipe, a socket or a device".to_owned())),
            EntryKind::Unreadable => Some(("unreadable", format!("cannot be looked at: {}", code(entry.stamp.size)))),
            EntryKind::Secret => Some(("bad_name", "has a secret in its path, which nobody is to see".to_owned())),
            EntryKind::TooDeep => Some(("too_deep", "is a folder too deep to be looked into".to_owned())),
        };
        if let Some((code, sentence)) = problem {
            match entry.kind {
                // What lies in a folder that nobody has seen may be meant by no rule at all.
                EntryKind::TooDeep | EntryKind::Unreadable | EntryKind::Secret if entry.rules == u64::MAX => {
                    self.unseen = true;
                    // Unless the folder itself is meant: then all of it is.
                    let means = |rule: &ArtifactRule| wire::matches(rule.path.as_bytes(), &entry.path);
                    for (bit, _) in self.rules.iter().enumerate().filter(|(_, rule)| means(rule)) {
                        self.spoiled |= 1 << bit;
                    }
                }
                EntryKind::Unreadable => self.spoiled |= mine,
                EntryKind::Secret => {
                    self.found |= mine;
                    self.spoiled |= mine;
                }
                // What is no file is not kept, and nobody can have meant that it should be.
                EntryKind::File | EntryKind::Link | EntryKind::Other | EntryKind::TooDeep => {}
            }
            return self.told.tell(ArtifactProblem::new(&entry.path, code, sentence));
        }
        self.found |= mine;
        let spoil = |this: &mut Self, code: &str, sentence: String| {
            this.spoiled |= mine;
            this.told.tell(ArtifactProblem::new(&entry.path, code, sentence));
        };
        let Ok(path) = String::from_utf8(entry.path.clone()) else {
            return spoil(self, "bad_name", "has a name that is not UTF-8".to_owned());
        };
        if !is_artifact_path(&path) {
            return spoil(self, "bad_name", "has a name that is no path in the workspace".to_owned());
        }
        // The first rule that means it says how large it may be, and how many of it there are.
        let first = mine.trailing_zeros() as usize;
        let rule = &self.rules[first];
        let size = entry.stamp.size;
        let most = rule.max_size.unwrap_or(self.limits.max_size).min(self.limits.max_size);
        if size > most.as_u64() {
            return spoil(self, "too_large", format!("has {size} bytes; at most {most} are kept of a file"));
        }
        if rule.max_count.is_some_and(|most| self.taken[first] >= most) {
            self.spoiled |= mine;
            self.beyond[first] += 1;
            return;
        }
        if self.wanted.len() as u64 >= self.limits.max_count {
            self.spoiled |= mine;
            self.beyond_all += 1;
            return;
        }
        let total = self.total.saturating_add(size);
        if total > self.limits.max_total.as_u64() {
            let most = self.limits.max_total;
            return spoil(self, "too_much", format!("has {size} bytes; with it there are more than {most} in all"));
        }
        self.total = total;
        self.taken[first] += 1;
        let may_change = (0..self.rules.len()).any(|bit| mine >> bit & 1 == 1 && self.rules[bit].may_change);
        let modified_at = UnixMillis::new(entry.stamp.mtime_ns / 1_000_000);
        let (stamp, mode) = (entry.stamp, entry.mode & 0o777);
        self.wanted.push(Wanted { path, mode, modified_at, stamp, rules: mine, may_change });
    }

    fn all_rules(&self) -> u64 {
        u64::MAX.checked_shr(64 - u32::try_from(self.rules.len()).unwrap_or(64)).unwrap_or(0)
    }

    fn too_many(&mut self) {
        for (rule, beyond) in self.rules.iter().zip(&self.beyond) {
            if *beyond > 0 {
                let most = rule.max_count.unwrap_or_default();
                let sentence = format!("means {} files; the first {most} that were found are kept", most + beyond);
                self.told.tell(ArtifactProblem::new(rule.path.as_bytes(), "too_many", sentence));
            }
        }
        if self.beyond_all > 0 {
            let most = self.limits.max_count;
            let sentence =
                format!("there are {} files; the first {most} that were found are kept", most + self.beyond_all);
            self.told.tell(ArtifactProblem::new(b"", "too_many", sentence));
        }
    }

    /// Takes a part of a file. Errors: it was not asked for.
    pub(super) fn piece(&mut self, piece: Piece) -> Result<Vec<Do>, String> {
        let Some(flight) = self.flights.front_mut().filter(|flight| {
            flight.number == piece.number && flight.offset == piece.offset && piece.bytes.len() as u64 <= flight.left
        }) else {
            return Err("it sends a part of a file that was not asked for".to_owned());
        };
        let count = piece.bytes.len() as u64;
        (flight.offset, flight.left) = (flight.offset + count, flight.left - count);
        let (file, short) = (flight.file, flight.left > 0);
        if piece.last {
            self.flights.pop_front();
        } else if count == 0 {
            return Err("it sends a part of a file that has nothing".to_owned());
        }
        // What was still on its way of a file that was given up.
        if file < self.file {
            return Ok(Vec::new());
        }
        let Some(wanted) = self.wanted.get(file) else {
            return Err("it sends a file that was not asked for".to_owned());
        };
        let mut todo = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            todo.push(Do::Begin(wanted.clone()));
        }
        self.received += count;
        let changed = piece.stamp != wanted.stamp && !wanted.may_change;
        let problem = if piece.error != 0 {
            let error = std::io::Error::from_raw_os_error(piece.error);
            Some(("unreadable", format!("cannot be read: {error}")))
        } else if changed || (piece.last && short && !wanted.may_change) {
            Some(("changed", "changed while it was read; set `may_change` to keep what was read".to_owned()))
        } else {
            None
        };
        let over = self.received >= wanted.stamp.size || (piece.last && short);
        match problem {
            Some((code, sentence)) => {
                let (path, rules) = (wanted.path.clone(), wanted.rules);
                self.give_up(&path, rules, code, sentence);
                todo.push(Do::Drop);
                self.advance();
            }
            None => {
                if count > 0 {
                    todo.push(Do::Bytes(piece.bytes));
                }
                if over {
                    todo.push(Do::Keep);
                    self.advance();
                }
            }
        }
        Ok(todo)
    }

    fn advance(&mut self) {
        (self.file, self.received, self.begun) = (self.file + 1, 0, false);
        if self.next.0 < self.file {
            self.next = (self.file, 0);
        }
    }

    fn give_up(&mut self, path: &str, rules: u64, code: &str, sentence: String) {
        self.spoiled |= rules;
        self.told.tell(ArtifactProblem::new(path.as_bytes(), code, sentence));
    }

    /// A file that was kept could not be stored.
    pub(super) fn not_stored(&mut self, wanted: &Wanted, reason: &str) {
        self.ours |= wanted.rules;
        self.told.tell(ArtifactProblem::new(
            wanted.path.as_bytes(),
            "not_stored",
            format!("could not be stored: {reason}"),
        ));
    }

    fn finish(&mut self) {
        self.stage = Stage::Done;
        for (bit, rule) in self.rules.iter().enumerate() {
            if rule.required && self.found >> bit & 1 == 0 {
                let sentence = "is required, and there is no such file".to_owned();
                self.told.tell(ArtifactProblem::new(rule.path.as_bytes(), "missing", sentence));
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// From here on nobody can say of any rule that it is kept to.
    pub(super) fn none_for_sure(&mut self) {
        self.ours |= self.all_rules();
    }

    /// Whether a required rule is not kept to for another reason than the job.
    pub(super) fn failed(&self) -> bool {
        self.rules.iter().enumerate().any(|(bit, rule)| rule.required && self.ours >> bit & 1 == 1)
    }

    /// The required rules that the job has not kept to.
    pub(super) fn missing(&self) -> Vec<String> {
        let required = self.rules.iter().enumerate().filter(|(_, rule)| rule.required);
        let missing = required.filter(|(bit, _)| {
            let (found, spoiled, ours) = (self.found >> bit & 1, self.spoiled >> bit & 1, self.ours >> bit & 1);
            spoiled == 1 || (found == 0 && ours == 0)
        });
        let told = |bit: usize, rule: &ArtifactRule| {
            let why = if self.found >> bit & 1 == 0 { "there is no such file" } else { "not all of it could be kept" };
            format!("{}: {why}", rule.path)
        };
        missing.map(|(bit, rule)| told(bit, rule)).collect()
    }

    /// Whether everything that the rules mean is kept.
    pub(super) fn is_complete(&self) -> bool {
        self.is_done() && self.spoiled == 0 && self.ours == 0 && !self.unseen && self.missing().is_empty()
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;

//! An entry as a record: the columns of its row, with sums that show when one of them is not what was written.
//!
//! A record has a version of its own, apart from the schema's: it says what the two documents mean. Each version has its
//! reader, which is never edited once it was released. How the sums are made is the same in all versions, so that a record
//! of a newer program is known from a damaged one.

use crate::job::{AttemptId, JobSpec, LeaseToken, Report};
use crate::journal::{Entry, EntryKey, Stage};
use rusqlite::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The version that is written.
pub(super) const VERSION: i64 = 1;

/// Every column that is read, with the spec beside it. An outer join: an entry whose spec is gone must be found.
pub(super) const SELECT: &str = "SELECT entries.seq, backend, attempt, token, generation, stage, version, spec_sum, \
                                 report, sum, spec FROM entries LEFT JOIN specs ON specs.seq = entries.seq";

/// An entry on its way to its row.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) backend: String,
    pub(super) attempt: String,
    pub(super) token: i64,
    pub(super) generation: u32,
    pub(super) stage: &'static str,
    pub(super) spec: String,
    /// Tells this spec from any other: one that is there already is not written again.
    pub(super) spec_sum: i64,
    pub(super) report: Option<String>,
}

/// Why a row is no entry.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// A newer program wrote it, in this version.
    Newer(i64),
    /// Something in it is not what was written, or makes no sense.
    Damaged(String),
}

impl Record {
    /// Errors: a value that JSON cannot hold.
    pub(super) fn of(entry: &Entry) -> Result<Self, serde_json::Error> {
        let (stage, report) = match &entry.stage {
            Stage::Intent => ("intent", None),
            Stage::Committed => ("committed", None),
            Stage::Ended(report) => ("ended", Some(json(report)?)),
        };
        let spec = json(&entry.spec)?;
        Ok(Self {
            backend: entry.key.backend.clone(),
            attempt: entry.key.attempt.to_string(),
            // All 64 bits are somebody's token; SQLite's integers have a sign.
            token: entry.token.0.cast_signed(),
            generation: entry.generation,
            stage,
            spec_sum: sum(&[spec.as_bytes()]),
            spec,
            report,
        })
    }

    /// The sum over its row, once it is known which one that is.
    pub(super) fn sum(&self, seq: i64) -> i64 {
        self.sum_as(seq, VERSION)
    }

    pub(super) fn sum_as(&self, seq: i64, version: i64) -> i64 {
        Columns {
            seq,
            backend: &self.backend,
            attempt: &self.attempt,
            token: self.token,
            generation: i64::from(self.generation),
            stage: self.stage,
            version,
            spec_sum: self.spec_sum,
            report: self.report.as_deref(),
        }
        .sum()
    }
}

/// A row of the entries but for its sum.
struct Columns<'a> {
    seq: i64,
    backend: &'a str,
    attempt: &'a str,
    token: i64,
    generation: i64,
    stage: &'a str,
    version: i64,
    spec_sum: i64,
    report: Option<&'a str>,
}

impl Columns<'_> {
    fn sum(&self) -> i64 {
        sum(&[
            &self.seq.to_le_bytes(),
            self.backend.as_bytes(),
            self.attempt.as_bytes(),
            &self.token.to_le_bytes(),
            &self.generation.to_le_bytes(),
            self.stage.as_bytes(),
            &self.version.to_le_bytes(),
            &self.spec_sum.to_le_bytes(),
            // An absent report is no empty one.
            &[u8::from(self.report.is_some())],
            self.report.unwrap_or_default().as_bytes(),
        ])
    }
}

/// What a row says, if it is what was written.
pub(super) fn read(row: &Row<'_>) -> Result<Entry, Unreadable> {
    let no_text = |error: rusqlite::types::FromSqlError| Unreadable::Damaged(format!("a column is no text: {error}"));
    let no_value = |error: rusqlite::Error| Unreadable::Damaged(format!("a column is not what it should be: {error}"));
    let text = |at: usize| row.get_ref(at).map_err(no_value)?.as_str().map_err(no_text);
    let number = |at: usize| row.get::<_, i64>(at).map_err(no_value);
    let columns = Columns {
        seq: number(0)?,
        backend: text(1)?,
        attempt: text(2)?,
        token: number(3)?,
        generation: number(4)?,
        stage: text(5)?,
        version: number(6)?,
        spec_sum: number(7)?,
        report: row.get_ref(8).map_err(no_value)?.as_str_or_null().map_err(no_text)?,
    };
    if columns.sum() != number(9)? {
        return Err(Unreadable::Damaged("its checksum is not that of what is in it".to_owned()));
    }
    let Some(spec) = row.get_ref(10).map_err(no_value)?.as_str_or_null().map_err(no_text)? else {
        return Err(Unreadable::Damaged("its spec is gone".to_owned()));
    };
    if sum(&[spec.as_bytes()]) != columns.spec_sum {
        return Err(Unreadable::Damaged("its spec's checksum is not that of the spec".to_owned()));
    }
    match columns.version {
        1 => version_1(&columns, spec).map_err(Unreadable::Damaged),
        newer if newer > VERSION => Err(Unreadable::Newer(newer)),
        other => Err(Unreadable::Damaged(format!("there is no version {other} of entries"))),
    }
}

/// The first one: spec and report are the documents that the agent protocol has for them.
fn version_1(columns: &Columns<'_>, spec: &str) -> Result<Entry, String> {
    let attempt: AttemptId = columns.attempt.parse().map_err(|error: crate::job::BadId| error.to_string())?;
    let generation =
        u32::try_from(columns.generation).map_err(|_| format!("{} is no generation", columns.generation))?;
    let stage = match (columns.stage, columns.report) {
        ("intent", None) => Stage::Intent,
        ("committed", None) => Stage::Committed,
        ("ended", Some(report)) => Stage::Ended(Box::new(document::<Report>("report", report)?)),
        (stage, report) => {
            let with = if report.is_some() { "with" } else { "without" };
            return Err(format!("there is no stage `{}` {with} a report", crate::job::shown(stage)));
        }
    };
    Ok(Entry {
        key: EntryKey { backend: columns.backend.to_owned(), attempt },
        token: LeaseToken(columns.token.cast_unsigned()),
        generation,
        spec: document::<JobSpec>("spec", spec)?,
        stage,
    })
}

fn json<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(value)
}

fn document<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("its {what} is not valid: {}", crate::job::shown(&error.to_string())))
}

/// The first eight bytes of a SHA-256 over the parts, each with its length before it.
pub(super) fn sum(parts: &[&[u8]]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (first, _) = digest.split_first_chunk::<8>().expect("32 bytes");
    i64::from_le_bytes(*first)
}

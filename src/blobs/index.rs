//! What is stored, who refers to it, and until when: one SQLite file with one thread.

use super::{Blob, BlobError, Held};
use crate::database::{self, Durability, Kind, Step, Thoroughness};
use crate::job::{Digest, Millis, UnixMillis};
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;

/// "JCB" and a number in the file's header: this is an index of contents.
const APPLICATION_ID: i64 = 0x4A43_4201;

const KIND: Kind<'static> =
    Kind { name: "index of contents", application_id: APPLICATION_ID, steps: STEPS, look: Thoroughness::Quick };

/// Released steps are never edited: a further one is added.
const STEPS: &[Step] = &[Step { what: "blobs and references", run: |db| db.execute_batch(BEGINNING) }];

const BEGINNING: &str = "
CREATE TABLE blobs (digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, seen_at INTEGER NOT NULL, note TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_age ON blobs (seen_at);
CREATE TABLE refs (
    holder TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    until INTEGER,
    PRIMARY KEY (holder, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX refs_by_digest ON refs (digest);
CREATE INDEX refs_by_end ON refs (until) WHERE until IS NOT NULL;
";

/// When 1,024 calls wait for its thread, more wait for them.
#[derive(Debug)]
pub(super) struct Index(database::Worker<BlobError>);

fn millis(at: UnixMillis) -> i64 {
    i64::try_from(at.as_u64()).unwrap_or(i64::MAX)
}

fn digest(text: &str) -> rusqlite::Result<Digest> {
    Digest::from_hex(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

/// The names of all contents that an index knows, in hexadecimal digits, of one that no process has open. Errors: it cannot be read.
pub fn listed(path: &Path) -> Result<Vec<String>, BlobError> {
    let failed = |error: rusqlite::Error| BlobError::Failed(format!("{}: {error}", path.display()));
    let db = database::read_only(path)?;
    let mut rows = db.prepare("SELECT digest FROM blobs").map_err(failed)?;
    let names = rows.query_map([], |row| row.get::<_, String>(0)).map_err(failed)?;
    // One that is none has no file either, and is told of when the store is opened.
    let good = |name: &String| Digest::from_hex(name).is_ok();
    names.filter(|name| name.as_ref().map_or(true, good)).collect::<rusqlite::Result<_>>().map_err(failed)
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self, BlobError> {
        Ok(Self(database::Worker::grouping("contents", database::open(path, &KIND)?)))
    }

    pub(super) async fn all(&self) -> Result<Vec<Digest>, BlobError> {
        let all = |db: &Connection| {
            let mut rows = db.prepare_cached("SELECT digest FROM blobs")?;
            rows.query_map([], |row| row.get::<_, String>(0))?.map(|text| digest(&text?)).collect()
        };
        self.0.run_as(Durability::Written, all).await
    }

    pub(super) async fn add(&self, blob: Digest, bytes: u64, now: UnixMillis) -> Result<(), BlobError> {
        let add = move |db: &Connection| {
            db.prepare_cached("INSERT INTO blobs (digest, bytes, seen_at) VALUES (?1, ?2, ?3)")?
                .execute(params![blob.hex(), bytes, millis(now)])
                .map(drop)
        };
        self.0.run(add).await
    }

    pub(super) async fn find(&self, name: Digest, now: UnixMillis, grace: Millis) -> Result<Option<Blob>, BlobError> {
        let find = move |db: &Connection| {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get(2)?));
            let found = db
                .prepare_cached("SELECT bytes, seen_at, note FROM blobs WHERE digest = ?1")?
                .query_row([name.hex()], row)
                .optional()?;
            let Some((bytes, seen_at, note)) = found else { return Ok(None) };
            // Written rarely: a content that is read much would cost a write each time.
            let fresh = millis(now).saturating_sub(i64::try_from(grace.as_u64() / 4).unwrap_or(i64::MAX));
            if seen_at < fresh {
                db.prepare_cached("UPDATE blobs SET seen_at = ?2 WHERE digest = ?1")?
                    .execute(params![name.hex(), millis(now)])?;
            }
            Ok(Some(Blob { digest: name, bytes, note }))
        };
        self.0.run_as(Durability::Written, find).await
    }

    pub(super) async fn note(&self, name: Digest, note: String) -> Result<(), BlobError> {
        let put = move |db: &Connection| {
            db.prepare_cached("UPDATE blobs SET note = ?2 WHERE digest = ?1")?
                .execute(params![name.hex(), note])
                .map(drop)
        };
        self.0.run_as(Durability::Written, put).await
    }

    /// The inner error is the first that is not there; nothing is referred to then.
    pub(super) async fn refer(&self, holder: String, digests: Vec<Digest>) -> Result<Result<(), Digest>, BlobError> {
        let refer = move |db: &Connection| {
            let mut known = db.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1")?;
            for digest in &digests {
                if !known.exists([digest.hex()])? {
                    return Ok(Err(*digest));
                }
            }
            let mut put = db.prepare_cached(
                "INSERT INTO refs (holder, digest) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET until = NULL",
            )?;
            for digest in &digests {
                put.execute(params![holder, digest.hex()])?;
            }
            Ok(Ok(()))
        };
        self.0.run(refer).await
    }

    pub(super) async fn keep_until(&self, holder: String, until: UnixMillis) -> Result<(), BlobError> {
        let keep = move |db: &Connection| {
            db.prepare_cached("UPDATE refs SET until = ?2 WHERE holder = ?1")?
                .execute(params![holder, millis(until)])
                .map(drop)
        };
        self.0.run_as(Durability::Written, keep).await
    }

    pub(super) async fn referred(&self, holder: String) -> Result<Vec<Digest>, BlobError> {
        let referred = move |db: &Connection| {
            let mut rows = db.prepare_cached("SELECT digest FROM refs WHERE holder = ?1")?;
            rows.query_map([holder], |row| row.get::<_, String>(0))?.map(|text| digest(&text?)).collect()
        };
        self.0.run_as(Durability::Written, referred).await
    }

    pub(super) async fn holders(&self, prefix: String, after: String, limit: u32) -> Result<Vec<String>, BlobError> {
        let holders = move |db: &Connection| {
            let mut rows = db.prepare_cached(
                "SELECT DISTINCT holder FROM refs WHERE holder > ?1 AND substr(holder, 1, length(?2)) = ?2 AND until IS NULL
                 ORDER BY holder LIMIT ?3",
            )?;
            rows.query_map(params![after, prefix, limit], |row| row.get(0))?.collect()
        };
        self.0.run_as(Durability::Written, holders).await
    }

    pub(super) async fn held(&self) -> Result<Held, BlobError> {
        let held = |db: &Connection| {
            db.prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM blobs")?
                .query_row([], |row| Ok(Held { blobs: row.get(0)?, bytes: row.get(1)? }))
        };
        self.0.run_as(Durability::Written, held).await
    }

    pub(super) async fn forget(&self, digests: Vec<Digest>) -> Result<(), BlobError> {
        if digests.is_empty() {
            return Ok(());
        }
        let forget = move |db: &Connection| {
            for digest in digests {
                db.prepare_cached("DELETE FROM refs WHERE digest = ?1")?.execute([digest.hex()])?;
                db.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?.execute([digest.hex()])?;
            }
            Ok(())
        };
        self.0.run(forget).await
    }

    /// Takes references out whose time is over at `now`, and contents without any that were last seen before `before`: those, at most
    /// `limit`, with their sizes. Synced, since their files are removed next.
    pub(super) async fn sweep(
        &self,
        now: UnixMillis,
        before: UnixMillis,
        limit: u32,
    ) -> Result<Vec<(Digest, u64)>, BlobError> {
        let sweep = move |db: &Connection| {
            db.prepare_cached("DELETE FROM refs WHERE until <= ?1")?.execute([millis(now)])?;
            let mut rows = db.prepare_cached(
                "DELETE FROM blobs WHERE digest IN (
                     SELECT digest FROM blobs WHERE seen_at < ?1 AND NOT EXISTS (SELECT 1 FROM refs WHERE refs.digest = blobs.digest)
                     ORDER BY seen_at LIMIT ?2)
                 RETURNING digest, bytes",
            )?;
            let gone =
                rows.query_map(params![millis(before), limit], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
            gone.map(|row| row.and_then(|(text, bytes): (String, u64)| Ok((digest(&text)?, bytes)))).collect()
        };
        self.0.run(sweep).await
    }
}

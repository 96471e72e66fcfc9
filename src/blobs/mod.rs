//! Contents that jobs are given and give back, each under its SHA-256: stored once, kept while somebody needs it, then removed.
//!
//! Owns `<data_dir>/blobs`: the contents (behind `object_store`, so that another store can follow) and an index of them in SQLite, which
//! says how large each is, when it was last asked for, and who refers to it until when. Must never know what a content is for: who
//! refers to it is a text, and what was found out about it is a document that its owner reads.
//!
//! ```text
//! <root>/index.db                 blobs, and references to them
//! <root>/content/ab/cd…           one file each, complete from the moment it has its name
//! <root>/content/arriving/…       being written; emptied at every start
//! ```
//!
//! A content is on the disk before it is in the index, and out of the index before it is removed: a crash in between leaves a file
//! that the index does not know, and the next start removes it.

mod index;
mod put;
#[cfg(test)]
mod tests;

pub use index::listed;
pub use put::Stored;

use crate::database;
use crate::job::{ByteSize, Digest, Millis, UnixMillis};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use index::Index;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::HashSet;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::Mutex;

/// One read of a content, and one write: what each reader and each writer holds of it in memory.
const PIECE: u64 = 512 * 1024;
/// Folder of what is being written.
const ARRIVING: &str = "arriving";
/// Contents that one round removes while others wait for the store; the rest is for the next one.
const SWEEP_BATCH: u32 = 200;

/// How much may be stored, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct BlobSettings {
    /// All contents together.
    pub max_bytes: ByteSize,
    /// One of them.
    pub max_blob: ByteSize,
    /// What nobody refers to is kept this long after it was last stored or asked for: so long a client may take between looking whether
    /// a content is there and the job that needs it.
    pub grace: Millis,
}

/// What is known of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// What was found out about it, as [`BlobStore::note`] was told.
    pub note: Option<String>,
}

/// How much is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// How many contents.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a content cannot be stored, read or referred to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// There is none of this name.
    #[error("content {0} is not there")]
    Missing(Digest),
    /// It is larger than one may be.
    #[error("the content is larger than {0}, the most that one may have")]
    TooLarge(ByteSize),
    /// With it there would be more than all may have.
    #[error("the store is full: all contents together may have {0}")]
    Full(ByteSize),
    /// The disk is full.
    #[error("the disk of the store is full")]
    NoSpace,
    /// It is not what it was said to be.
    #[error("the content is {got}, and was said to be {said}")]
    Mismatch {
        /// The name that it came with.
        said: Digest,
        /// Its own.
        got: Digest,
    },
    /// Whoever brings it stopped before its end.
    #[error("the content broke off: {0}")]
    BrokenOff(String),
    /// The store itself failed.
    #[error("the store of contents: {0}")]
    Failed(String),
}

impl From<database::Error> for BlobError {
    fn from(error: database::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        let mut cause: &dyn std::error::Error = &error;
        loop {
            let full = |io: &std::io::Error| {
                matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            };
            if cause.downcast_ref::<std::io::Error>().is_some_and(full) {
                return Self::NoSpace;
            }
            match cause.source() {
                Some(deeper) => cause = deeper,
                None => return Self::Failed(error.to_string()),
            }
        }
    }
}

/// The store, and how much those who have it from here may put into it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobStore(Arc<Inner>, BlobSettings);

#[derive(Debug)]
struct Inner {
    files: LocalFileSystem,
    index: Index,
    /// Bytes that are there, and those that uploads under way have room for.
    taken: AtomicU64,
    /// Held while a content gets its name and its row, or loses them: so none is removed under one who stores it again.
    naming: Mutex<()>,
}

fn place(digest: &Digest) -> object_store::path::Path {
    let hex = digest.hex();
    object_store::path::Path::from_iter([&hex[..2], &hex[2..]])
}

impl BlobStore {
    /// Opens the store below `root`, makes it if need be, and removes what a crash has left. Errors: it cannot be read or written.
    pub async fn open(root: &Path, settings: BlobSettings) -> Result<Self, BlobError> {
        let root = root.to_owned();
        let (files, index) = crate::supervise::blocking(move || open_files(&root)).await?;
        let inner = Inner { files, index, taken: AtomicU64::new(0), naming: Mutex::new(()) };
        let store = Self(Arc::new(inner), settings);
        store.settle().await?;
        let held = store.held().await?;
        store.0.taken.store(held.bytes, std::sync::atomic::Ordering::Relaxed);
        Ok(store)
    }

    /// Makes index and files agree: a file that the index does not know is what a crash left; a row without a file is told of and goes.
    async fn settle(&self) -> Result<(), BlobError> {
        let known: HashSet<Digest> = self.0.index.all().await?.into_iter().collect();
        let mut seen = HashSet::new();
        let mut files = self.0.files.list(None);
        while let Some(file) = files.try_next().await? {
            let digest = Digest::from_hex(&file.location.as_ref().replace('/', "")).ok();
            match digest.filter(|digest| known.contains(digest)) {
                Some(digest) => drop(seen.insert(digest)),
                None => self.0.files.delete(&file.location).await?,
            }
        }
        let lost: Vec<Digest> = known.difference(&seen).copied().collect();
        for digest in &lost {
            tracing::error!(%digest, "a stored content is gone from the disk; whoever refers to it will miss it");
        }
        self.0.index.forget(lost).await
    }

    /// How much may be stored.
    pub fn settings(&self) -> BlobSettings {
        self.1
    }

    /// The same store for contents of a kind that has bounds of its own: the rest of the room is for others.
    #[must_use]
    pub fn within(&self, max_bytes: ByteSize, max_blob: ByteSize) -> Self {
        let max_bytes = max_bytes.min(self.1.max_bytes);
        Self(Arc::clone(&self.0), BlobSettings { max_bytes, max_blob, ..self.1 })
    }

    /// What is known of a content, which from now on stays for the grace at least.
    pub async fn find(&self, digest: Digest) -> Result<Option<Blob>, BlobError> {
        self.0.index.find(digest, UnixMillis::now(), self.1.grace).await
    }

    /// The bytes of a content from `range`, which is cut to what there is, in pieces of half a megabyte. Nothing is read ahead.
    /// Errors: there is none; it ends before its time.
    pub async fn read(
        &self,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static, BlobError> {
        let blob = self.find(digest).await?.ok_or(BlobError::Missing(digest))?;
        let (store, end) = (self.clone(), range.end.min(blob.bytes));
        Ok(futures_util::stream::try_unfold(range.start, move |at| {
            let store = store.clone();
            async move {
                if at >= end {
                    return Ok(None);
                }
                let until = end.min(at.saturating_add(PIECE));
                let piece = match store.0.files.get_range(&place(&digest), at..until).await {
                    Ok(piece) => piece,
                    Err(object_store::Error::NotFound { .. }) => return Err(BlobError::Missing(digest)),
                    Err(error) => return Err(error.into()),
                };
                if piece.len() as u64 != until - at {
                    return Err(BlobError::Failed(format!("content {digest} was cut off on the disk")));
                }
                Ok(Some((piece, until)))
            }
        })
        .boxed())
    }

    /// Keeps a document beside a content: what somebody found out about it, to ask once only.
    pub async fn note(&self, digest: Digest, note: String) -> Result<(), BlobError> {
        self.0.index.note(digest, note).await
    }

    /// `holder` needs these contents until it is told otherwise: all of them, or none. Synced. Errors: one is not there.
    pub async fn refer(&self, holder: &str, digests: &[Digest]) -> Result<(), BlobError> {
        self.0.index.refer(holder.to_owned(), digests.to_vec()).await?.map_err(BlobError::Missing)
    }

    /// From `until` on, `holder` needs none of its contents any more.
    pub async fn keep_until(&self, holder: &str, until: UnixMillis) -> Result<(), BlobError> {
        self.0.index.keep_until(holder.to_owned(), until).await
    }

    /// `holder` needs nothing any more.
    pub async fn release(&self, holder: &str) -> Result<(), BlobError> {
        self.keep_until(holder, UnixMillis::new(0)).await
    }

    /// What `holder` refers to.
    pub async fn referred(&self, holder: &str) -> Result<Vec<Digest>, BlobError> {
        self.0.index.referred(holder.to_owned()).await
    }

    /// Holders behind `after`, by name, with no end said, that begin with `prefix`; at most `limit`.
    pub async fn holders(&self, prefix: &str, after: &str, limit: u32) -> Result<Vec<String>, BlobError> {
        self.0.index.holders(prefix.to_owned(), after.to_owned(), limit).await
    }

    /// How much is stored.
    pub async fn held(&self) -> Result<Held, BlobError> {
        self.0.index.held().await
    }

    /// Removes references whose time is over, and contents that nobody refers to and that nobody has asked for within the grace. Says what
    /// went.
    pub async fn sweep(&self, now: UnixMillis) -> Result<Held, BlobError> {
        let grace = self.1.grace;
        let before = UnixMillis::new(now.as_u64().saturating_sub(grace.as_u64()));
        let mut gone = Held::default();
        loop {
            let naming = self.0.naming.lock().await;
            let some = self.0.index.sweep(now, before, SWEEP_BATCH).await?;
            for (digest, bytes) in &some {
                match self.0.files.delete(&place(digest)).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    // It is out of the index: the next start removes it.
                    Err(error) => tracing::warn!(%digest, %error, "a content could not be removed"),
                }
                self.give_back(*bytes);
                gone.blobs += 1;
                gone.bytes += bytes;
            }
            drop(naming);
            if some.len() < SWEEP_BATCH as usize {
                return Ok(gone);
            }
        }
    }
}

fn open_files(root: &Path) -> Result<(LocalFileSystem, Index), BlobError> {
    let content: PathBuf = root.join("content");
    let failed = |path: &Path, error: std::io::Error| BlobError::Failed(format!("{}: {error}", path.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&content).map_err(|error| failed(&content, error))?;
    let arriving = content.join(ARRIVING);
    if arriving.exists() {
        // Uploads that a crash has cut off. Their clients begin again.
        std::fs::remove_dir_all(&arriving).map_err(|error| failed(&arriving, error))?;
    }
    let files = LocalFileSystem::new_with_prefix(&content)?.with_fsync(true);
    Ok((files, Index::open(&root.join("index.db"))?))
}

//! What is known of the inputs of a job before it is taken in: that they are there, how large they are, and that an archive holds
//! nothing but what a workspace may have.
//!
//! An archive is read once: what was found is kept beside it.

use super::Embedded;
use crate::archive::{self, Bounds, Nowhere, Tree, Unread};
use crate::blobs::{Blob, BlobError, BlobStore};
use crate::job::{Digest, Input, InputContent, JobSpec, MAX_INPUT_ENTRIES, Problems};
use crate::queue::StoreError;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use tokio::runtime::Handle;

/// Why a job's inputs are not what it needs.
#[derive(Debug)]
pub enum Unready {
    /// They are wrong, each with its path.
    Problems(Problems),
    /// They cannot be looked at now.
    Away(StoreError),
}

impl<E: Into<StoreError>> From<E> for Unready {
    fn from(error: E) -> Self {
        Self::Away(error.into())
    }
}

/// What was found in an archive; kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    /// It can be unpacked.
    Archive { bytes: u64, entries: u64 },
    /// It cannot; why.
    Refused(String),
}

impl Embedded {
    /// The same job with what is known of its inputs. Errors: all that is wrong with them.
    pub async fn know_inputs(&self, spec: JobSpec) -> Result<JobSpec, Unready> {
        if spec.inputs().iter().all(|input| input.blob().is_none()) {
            return Ok(spec);
        }
        let mut problems = Problems::default();
        let mut known = Vec::with_capacity(spec.inputs().len());
        for (n, input) in spec.inputs().iter().enumerate() {
            known.push(self.know(n, input, &mut problems).await?);
        }
        let spec = spec.with_inputs(known);
        if problems.is_empty() {
            fits(&spec, &mut problems);
        }
        problems.or_value(spec).map_err(Unready::Problems)
    }

    async fn know(&self, n: usize, input: &Input, problems: &mut Problems) -> Result<Input, Unready> {
        let Some(digest) = input.blob() else { return Ok(input.clone()) };
        let found = match self.blobs() {
            Some(blobs) => blobs.find(digest).await?,
            None => None,
        };
        let Some(blob) = found else {
            let fix = format!("upload it first: PUT /v1/blobs/{digest}");
            problems.add(format!("inputs[{n}].blob"), format!("{digest} is not there"), fix);
            return Ok(input.clone());
        };
        let content = match &input.content {
            InputContent::Archive { .. } => match self.archive(&blob).await? {
                Found::Archive { bytes, entries } => {
                    InputContent::Archive { blob: digest, bytes: Some(bytes), entries: Some(entries) }
                }
                Found::Refused(reason) => {
                    let fix = "pack it anew without that; docs/job-spec.md says what an archive may hold";
                    problems.add(format!("inputs[{n}].blob"), reason, fix);
                    return Ok(input.clone());
                }
            },
            InputContent::File { executable, .. } => {
                InputContent::File { blob: digest, executable: *executable, bytes: Some(blob.bytes) }
            }
            InputContent::Inline { .. } => return Ok(input.clone()),
        };
        Ok(Input { path: input.path.clone(), content })
    }

    /// What is in an archive: as it was found, or by reading it now.
    async fn archive(&self, blob: &Blob) -> Result<Found, Unready> {
        if let Some(found) = blob.note.as_deref().and_then(|note| serde_json::from_str(note).ok()) {
            return Ok(found);
        }
        let Some(contents) = self.contents.get() else { return Err(BlobError::Missing(blob.digest).into()) };
        let (blobs, looking, digest) = (contents.blobs.clone(), contents.looking.clone(), blob.digest);
        // Goes on when the caller leaves: the next one finds what was found.
        let look = crate::supervise::spawn("archive", async move {
            let Ok(_turn) = looking.acquire_owned().await else { return Err(StoreError::Closed) };
            let found = look(&blobs, digest).await?;
            let note = serde_json::to_string(&found).map_err(|error| StoreError::Contents(error.to_string()))?;
            blobs.note(digest, note).await?;
            Ok(found)
        });
        Ok(look.await.unwrap_or(Err(StoreError::Closed))?)
    }
}

/// A content as a reader that waits for it.
struct Content {
    pieces: BoxStream<'static, Result<Bytes, BlobError>>,
    rest: Bytes,
    runtime: Handle,
}

impl Read for Content {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.pieces.next()) {
                Some(piece) => self.rest = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(to.len());
        self.rest.copy_to_slice(&mut to[..count]);
        Ok(count)
    }
}

async fn look(blobs: &BlobStore, digest: Digest) -> Result<Found, StoreError> {
    let pieces = blobs.read(digest, 0..u64::MAX).await?.boxed();
    let content = Content { pieces, rest: Bytes::new(), runtime: Handle::current() };
    let found = crate::supervise::blocking(move || {
        let mut tree = Tree::new(Bounds::MOST);
        archive::unpack(content, ".", &mut tree, &mut Nowhere).map(|()| tree.contents())
    });
    match found.await {
        Ok(contents) => Ok(Found::Archive { bytes: contents.bytes, entries: contents.entries }),
        Err(Unread::Refused(refusal)) => Ok(Found::Refused(refusal.to_string())),
        Err(Unread::Failed(error)) => Err(StoreError::Contents(error.to_string())),
    }
}

/// Whether they fit into a workspace whose size the job says; where it does not, the agent knows.
fn fits(spec: &JobSpec, problems: &mut Problems) {
    let (bytes, entries) = spec.inputs_need();
    let resources = spec.resources();
    if let Some(disk) = resources.disk.filter(|disk| bytes > disk.as_u64()) {
        problems.add(
            "inputs",
            format!("take {bytes} bytes, and resources.disk is {disk}"),
            "raise resources.disk, or leave some out",
        );
    }
    if entries > MAX_INPUT_ENTRIES {
        let fix = "leave out what the job does not need, or have it unpack an archive by itself";
        problems.add("inputs", format!("make {entries} files; at most {MAX_INPUT_ENTRIES} are made"), fix);
    }
    let inodes = resources.inodes_or(u64::MAX);
    if entries >= inodes {
        problems.add(
            "inputs",
            format!("make {entries} files, and the workspace has room for {inodes}"),
            "raise resources.inodes",
        );
    }
}

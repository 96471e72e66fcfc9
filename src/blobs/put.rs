//! How a content comes in: hashed, counted and written as it arrives; under its name only when it is whole.

use super::{ARRIVING, BlobError, BlobStore, PIECE, place};
use crate::job::{Digest, UnixMillis};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use sha2::{Digest as _, Sha256};
use std::sync::atomic::Ordering;

/// Room is asked for in such steps when nobody says how large a content will be.
const ROOM: u64 = 16 * 1024 * 1024;

/// A content that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// It was not there before.
    pub new: bool,
}

/// Room in the store that an upload under way has; given back when it is dropped.
struct Room<'a> {
    store: &'a BlobStore,
    bytes: u64,
}

impl Room<'_> {
    /// Has room for so many bytes. Errors: there is not so much.
    fn reach(&mut self, bytes: u64) -> Result<(), BlobError> {
        let more = bytes.saturating_sub(self.bytes);
        let most = self.store.1.max_bytes;
        let fits = |taken: u64| taken.checked_add(more).filter(|all| *all <= most.as_u64());
        let taken = self.store.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map_err(|_| BlobError::Full(most))?;
        self.bytes += more;
        Ok(())
    }

    /// The content stays: so much of the room is used now.
    fn used(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.store.give_back(self.bytes);
    }
}

impl BlobStore {
    pub(super) fn give_back(&self, bytes: u64) {
        self.0.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Stores a content, synced: with its name, if that is known, and its length. What is there already is not stored again. Errors:
    /// it is too large, there is no room, it is not what its name says, it breaks off; nothing of it is kept then.
    pub async fn put<E: std::fmt::Display>(
        &self,
        content: impl Stream<Item = Result<Bytes, E>> + Send,
        said: Option<Digest>,
        length: Option<u64>,
    ) -> Result<Stored, BlobError> {
        let most = self.1.max_blob;
        if length.is_some_and(|length| length > most.as_u64()) {
            return Err(BlobError::TooLarge(most));
        }
        let mut room = Room { store: self, bytes: 0 };
        room.reach(length.unwrap_or_default())?;
        let arriving = Path::from_iter([ARRIVING, &uuid::Uuid::new_v4().simple().to_string()]);
        let mut upload = self.0.files.put_multipart(&arriving).await?;
        let (digest, bytes) = match self.take(content, upload.as_mut(), &mut room).await {
            Ok(taken) => taken,
            Err(error) => {
                // Dropping it removes what was written as well, only later.
                let _ = upload.abort().await;
                return Err(error);
            }
        };
        if let Some(said) = said.filter(|said| *said != digest) {
            let _ = upload.abort().await;
            return Err(BlobError::Mismatch { said, got: digest });
        }
        upload.complete().await?;
        let _naming = self.0.naming.lock().await;
        if self.find(digest).await?.is_some() {
            self.0.files.delete(&arriving).await?;
            return Ok(Stored { digest, bytes, new: false });
        }
        self.0.files.rename(&arriving, &place(&digest)).await?;
        self.0.index.add(digest, bytes, UnixMillis::now()).await?;
        room.used(bytes);
        Ok(Stored { digest, bytes, new: true })
    }

    /// Stores a content that is at hand.
    pub async fn put_bytes(&self, content: impl Into<Bytes>) -> Result<Stored, BlobError> {
        let content: Bytes = content.into();
        let length = content.len() as u64;
        self.put(futures_util::stream::iter([Ok::<_, BlobError>(content)]), None, Some(length)).await
    }

    async fn take<E: std::fmt::Display>(
        &self,
        content: impl Stream<Item = Result<Bytes, E>> + Send,
        upload: &mut dyn MultipartUpload,
        room: &mut Room<'_>,
    ) -> Result<(Digest, u64), BlobError> {
        let most = self.1.max_blob;
        let (mut hash, mut bytes, mut held) = (Sha256::new(), 0u64, BytesMut::new());
        let mut content = std::pin::pin!(content);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| BlobError::BrokenOff(error.to_string()))?;
            bytes = bytes.saturating_add(piece.len() as u64);
            if bytes > most.as_u64() {
                return Err(BlobError::TooLarge(most));
            }
            if bytes > room.bytes {
                room.reach(bytes.next_multiple_of(ROOM)).or_else(|_| room.reach(bytes))?;
            }
            held.extend_from_slice(&piece);
            if held.len() as u64 >= PIECE {
                write(upload, &mut hash, held.split().freeze()).await?;
            }
        }
        write(upload, &mut hash, held.freeze()).await?;
        Ok((Digest::new(hash.finalize().into()), bytes))
    }
}

/// Writes a part, which a thread of its own does, and hashes it meanwhile.
async fn write(upload: &mut dyn MultipartUpload, hash: &mut Sha256, part: Bytes) -> Result<(), BlobError> {
    let writing = upload.put_part(PutPayload::from_bytes(part.clone()));
    // In this order: what comes first is begun first, and what comes second is done here.
    let (written, ()) = tokio::join!(biased; writing, async { hash.update(&part) });
    Ok(written?)
}

//! Lists of jobs' files that were asked for of late: whoever fetches the files of a job asks for the same list with each of them.
//!
//! Owns the lists as they were read, and the bounds on them. A list is named by its digest, so what is kept is never out of date; still it
//! is given only while the store has it. One list is read at a time: many who ask take no more memory than one, and those who
//! ask for the same one find it read. Must never wait for its turn without an end.

use crate::blobs::{BlobError, BlobStore};
use crate::job::{ARTIFACT_LIST_MOST, Artifact, Digest};
use crate::supervise;
use futures_util::StreamExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all lists together, as they are written: the largest one has room. Read, none is larger.
const MOST_BYTES: u64 = ARTIFACT_LIST_MOST;
/// Lists.
const MOST_LISTS: usize = 256;
/// For others to have read theirs.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Lists {
    most_bytes: u64,
    turn: Arc<Semaphore>,
    /// The one that was asked for last is last.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    list: Digest,
    files: Arc<[Artifact]>,
    bytes: u64,
    /// Since the last look.
    used: bool,
}

impl Default for Lists {
    fn default() -> Self {
        Self::within(MOST_BYTES)
    }
}

impl Lists {
    fn within(most_bytes: u64) -> Self {
        Self { most_bytes, turn: Arc::new(Semaphore::new(1)), kept: Mutex::default() }
    }

    /// The files of a list, by their paths. Errors: it is gone, or cannot be read.
    pub(super) async fn get(&self, store: &BlobStore, list: Digest) -> Result<Arc<[Artifact]>, BlobError> {
        if let Some(files) = self.known(store, list).await? {
            return Ok(files);
        }
        let turn = tokio::time::timeout(PATIENCE, Arc::clone(&self.turn).acquire_owned()).await;
        let late = || BlobError::Failed(format!("lists of files are asked for faster than they can be read: {list}"));
        let turn = turn.ok().and_then(Result::ok).ok_or_else(late)?;
        // Whoever was before may have asked for the same.
        if let Some(files) = self.known(store, list).await? {
            return Ok(files);
        }
        let (files, bytes, _turn) = read(store, list, turn).await?;
        self.keep(list, Arc::clone(&files), bytes);
        Ok(files)
    }

    async fn known(&self, store: &BlobStore, list: Digest) -> Result<Option<Arc<[Artifact]>>, BlobError> {
        let Some(files) = self.look_up(list) else { return Ok(None) };
        if store.find(list).await?.is_none() {
            self.all().retain(|one| one.list != list);
            return Err(BlobError::Missing(list));
        }
        Ok(Some(files))
    }

    fn look_up(&self, list: Digest) -> Option<Arc<[Artifact]>> {
        let mut all = self.all();
        let at = all.iter().position(|one| one.list == list)?;
        let mut found = all.remove(at);
        found.used = true;
        let files = Arc::clone(&found.files);
        all.push(found);
        Some(files)
    }

    fn keep(&self, list: Digest, files: Arc<[Artifact]>, bytes: u64) {
        let mut all = self.all();
        all.retain(|one| one.list != list);
        all.push(Kept { list, files, bytes, used: true });
        while all.len() > MOST_LISTS || all.iter().map(|one| one.bytes).sum::<u64>() > self.most_bytes {
            all.remove(0);
        }
    }

    /// Lets go what nobody has asked for since the last call.
    pub(super) fn forget_unused(&self) {
        self.all().retain_mut(|one| std::mem::take(&mut one.used));
    }

    fn all(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a list. The turn comes back with it, and is not over before: neither when nobody waits for it any more.
async fn read(
    store: &BlobStore,
    list: Digest,
    turn: OwnedSemaphorePermit,
) -> Result<(Arc<[Artifact]>, u64, OwnedSemaphorePermit), BlobError> {
    let mut bytes = Vec::new();
    let mut pieces = std::pin::pin!(store.read(list, 0..ARTIFACT_LIST_MOST).await?);
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    supervise::blocking(move || {
        let mut files: Vec<Artifact> = serde_json::from_slice(&bytes)
            .map_err(|error| BlobError::Failed(format!("the list of files {list}: {error}")))?;
        // An agent elsewhere has written it; here files are looked for by their paths.
        if !files.is_sorted_by(|a, b| a.path <= b.path) {
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok((files.into(), bytes.len() as u64, turn))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::BlobSettings;
    use crate::job::{ByteSize, Millis, UnixMillis};

    async fn store() -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().expect("a folder");
        let (max_bytes, grace) = (ByteSize::from_mib(64), Millis::from_secs(60));
        let settings = BlobSettings { max_bytes, max_blob: max_bytes, grace };
        let store = BlobStore::open(dir.path(), settings).await.expect("opens");
        (dir, store)
    }

    /// A list with these paths, and its length.
    async fn list(store: &BlobStore, paths: &[&str]) -> (Digest, u64) {
        let file = |path: &&str| Artifact {
            path: (*path).to_owned(),
            size: 1,
            mode: 0o644,
            modified_at: UnixMillis::new(1),
            digest: Digest::of(path.as_bytes()),
        };
        let files: Vec<Artifact> = paths.iter().map(file).collect();
        let bytes = serde_json::to_vec(&files).expect("is written");
        let length = bytes.len() as u64;
        (store.put_bytes(bytes).await.expect("is stored").digest, length)
    }

    #[tokio::test]
    async fn many_who_ask_for_a_list_have_it_read_once() {
        let (_dir, store) = store().await;
        let (name, _) = list(&store, &["b", "a/c", "a"]).await;
        let lists = Lists::default();
        let asked: Vec<_> =
            futures_util::future::join_all((0..50).map(|_| async { lists.get(&store, name).await.expect("is there") }))
                .await;
        assert!(asked.iter().all(|files| Arc::ptr_eq(files, &asked[0])), "each was read by itself");
        let paths: Vec<&str> = asked[0].iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a", "a/c", "b"]);
    }

    #[tokio::test]
    async fn what_is_kept_has_a_bound_and_what_is_asked_for_stays() {
        let (_dir, store) = store().await;
        let [(one, bytes), (two, _), (three, _)] =
            [list(&store, &["1"]).await, list(&store, &["2"]).await, list(&store, &["3"]).await];
        let lists = Lists::within(2 * bytes);
        let get = async |name| lists.get(&store, name).await.expect("is there");
        let (first, second) = (get(one).await, get(two).await);
        assert!(Arc::ptr_eq(&get(one).await, &first));
        get(three).await;
        assert!(Arc::ptr_eq(&get(one).await, &first), "it was asked for last but one");
        assert!(!Arc::ptr_eq(&get(two).await, &second), "there was room for two only");
        let all = || lists.all().len();
        assert_eq!(all(), 2);
        lists.forget_unused();
        assert_eq!(all(), 2, "they were just asked for");
        let kept = get(two).await;
        lists.forget_unused();
        assert!(all() == 1 && Arc::ptr_eq(&get(two).await, &kept));
    }

    #[tokio::test]
    async fn a_list_that_the_store_has_let_go_is_gone() {
        let (_dir, store) = store().await;
        let (name, _) = list(&store, &["a"]).await;
        let lists = Lists::default();
        lists.get(&store, name).await.expect("is there");
        store.sweep(UnixMillis::now().plus(Millis::from_secs(3600))).await.expect("sweeps");
        assert_eq!(lists.get(&store, name).await, Err(BlobError::Missing(name)));
        assert!(lists.all().is_empty());
    }
}

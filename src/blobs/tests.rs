use super::*;
use std::convert::Infallible;

const KIB: u64 = 1024;
const GRACE: Millis = Millis::from_secs(3600);

fn settings() -> BlobSettings {
    BlobSettings { max_bytes: ByteSize::new(4096 * KIB), max_blob: ByteSize::new(2048 * KIB), grace: GRACE }
}

struct Place {
    dir: tempfile::TempDir,
    store: BlobStore,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(dir.path(), settings()).await.expect("opens");
        Self { dir, store }
    }

    async fn again(self) -> Self {
        drop(self.store);
        let store = BlobStore::open(self.dir.path(), settings()).await.expect("opens again");
        Self { dir: self.dir, store }
    }

    /// Names of all files that hold contents, or parts of one.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir.path().join("content")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() { folders.push(path) } else { found.push(path.display().to_string()) }
            }
        }
        found
    }

    async fn whole(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let pieces: Vec<Bytes> = self.store.read(digest, 0..u64::MAX).await?.try_collect().await?;
        Ok(pieces.concat())
    }
}

fn pieces(of: &[u8], size: usize) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    futures_util::stream::iter(of.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>())
}

fn content(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7) as u8 ^ seed).collect()
}

#[tokio::test]
async fn what_is_put_is_read_whole_and_in_parts_and_is_there_after_a_restart() {
    let mut place = Place::new().await;
    let bytes = content(1_300_000, 1);
    let stored = place.store.put(pieces(&bytes, 70_001), None, None).await.expect("is stored");
    assert_eq!((stored.digest, stored.bytes, stored.new), (Digest::of(&bytes), bytes.len() as u64, true));
    for _ in 0..2 {
        assert!(place.whole(stored.digest).await.expect("is there") == bytes);
        let parts: Vec<Bytes> =
            place.store.read(stored.digest, 5..600_000).await.expect("is there").try_collect().await.expect("reads");
        assert!(parts.concat() == bytes[5..600_000]);
        assert_eq!(place.store.held().await.expect("answers"), Held { blobs: 1, bytes: bytes.len() as u64 });
        place = place.again().await;
    }
    assert!(place.whole(Digest::of(b"other")).await == Err(BlobError::Missing(Digest::of(b"other"))));
}

#[tokio::test]
async fn the_same_content_is_stored_once_whoever_brings_it() {
    let place = Place::new().await;
    let bytes = content(300_000, 2);
    let puts = (0..4).map(|n| place.store.put(pieces(&bytes, 10_000 + n), Some(Digest::of(&bytes)), None));
    let all = futures_util::future::join_all(puts).await;
    assert_eq!(all.iter().filter(|stored| stored.as_ref().is_ok_and(|stored| stored.new)).count(), 1, "{all:?}");
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(place.files().len(), 1);
    // The room of those that were not needed came back.
    assert_eq!(place.store.0.taken.load(std::sync::atomic::Ordering::Relaxed), bytes.len() as u64);
}

#[tokio::test]
async fn what_is_wrong_with_a_content_is_said_and_nothing_of_it_stays() {
    let place = Place::new().await;
    let bytes = content(700_000, 3);
    let said = Digest::of(b"something else");
    let mismatch = place.store.put(pieces(&bytes, 60_000), Some(said), None).await;
    assert_eq!(mismatch, Err(BlobError::Mismatch { said, got: Digest::of(&bytes) }));
    let broken = futures_util::stream::iter([Ok(Bytes::from(bytes.clone())), Err("the line went dead")]);
    let broken = place.store.put(broken, None, Some(900_000)).await;
    assert_eq!(broken, Err(BlobError::BrokenOff("the line went dead".into())));
    let large = content(2048 * 1024 + 1, 4);
    for length in [None, Some(large.len() as u64)] {
        let refused = place.store.put(pieces(&large, 100_000), None, length).await;
        assert_eq!(refused, Err(BlobError::TooLarge(settings().max_blob)));
    }
    assert_eq!((place.files(), place.store.held().await.expect("answers")), (Vec::new(), Held::default()));
    assert_eq!(place.store.0.taken.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_full_store_takes_nothing_more_until_something_goes() {
    let place = Place::new().await;
    for seed in [1, 2] {
        place.store.put_bytes(content(1900 * 1024, seed)).await.expect("has room");
    }
    let more = content(300 * 1024, 3);
    for length in [None, Some(more.len() as u64)] {
        let refused = place.store.put(pieces(&more, 50_000), None, length).await;
        assert_eq!(refused, Err(BlobError::Full(settings().max_bytes)));
    }
    // What still fits is taken: room is not asked for in large steps when there is little.
    place.store.put(pieces(&content(100 * 1024, 4), 9000), None, None).await.expect("has room");
    let later = UnixMillis::now().plus(GRACE).plus(Millis::from_secs(1));
    assert_eq!(place.store.sweep(later).await.expect("sweeps").blobs, 3);
    place.store.put_bytes(more).await.expect("has room now");
}

#[tokio::test]
async fn what_somebody_refers_to_stays_until_its_end_and_the_rest_for_the_grace() {
    let place = Place::new().await;
    let [one, two, three] = [1, 2, 3].map(|seed| content(1000, seed));
    let digests = [&one, &two, &three].map(|bytes| Digest::of(bytes));
    for bytes in [&one, &two, &three] {
        place.store.put_bytes(bytes.clone()).await.expect("is stored");
    }
    place.store.refer("job:a", &digests[..2]).await.expect("are there");
    place.store.refer("job:b", &digests[1..2]).await.expect("is there");
    let missing = Digest::of(b"none");
    let refused = place.store.refer("job:c", &[digests[2], missing]).await;
    assert_eq!(refused, Err(BlobError::Missing(missing)));
    assert_eq!(place.store.holders("job:", "", 10).await.expect("answers"), ["job:a", "job:b"]);
    assert_eq!(place.store.holders("job:", "job:a", 10).await.expect("answers"), ["job:b"]);
    assert_eq!(place.store.holders("other:", "", 10).await.expect("answers"), Vec::<String>::new());

    let now = UnixMillis::now();
    let after = |hours: u64| now.plus(Millis::from_secs(hours * 3600 + 1));
    assert_eq!(place.store.sweep(now).await.expect("sweeps"), Held::default());
    assert_eq!(place.store.sweep(after(1)).await.expect("sweeps"), Held { blobs: 1, bytes: 1000 });
    place.store.keep_until("job:a", after(5)).await.expect("is said");
    assert_eq!(place.store.holders("job:", "", 10).await.expect("answers"), ["job:b"]);
    assert_eq!(place.store.sweep(after(4)).await.expect("sweeps").blobs, 0);
    assert_eq!(place.store.sweep(after(5)).await.expect("sweeps").blobs, 1);
    assert!(place.whole(digests[1]).await.expect("b needs it") == two);
    place.store.release("job:b").await.expect("is said");
    assert_eq!(place.store.sweep(after(6)).await.expect("sweeps").blobs, 1);
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_start_removes_what_a_crash_left_and_tells_of_what_is_gone() {
    let mut place = Place::new().await;
    let kept = place.store.put_bytes(content(2000, 1)).await.expect("is stored");
    let lost = place.store.put_bytes(content(2000, 2)).await.expect("is stored");
    place.store.refer("job:a", &[lost.digest]).await.expect("is there");
    let folder = place.dir.path().join("content");
    let hex = lost.digest.hex();
    std::fs::remove_file(folder.join(&hex[..2]).join(&hex[2..])).expect("was there");
    // Named, and not in the index yet; and half written.
    let stray = Digest::of(b"stray").hex();
    std::fs::create_dir_all(folder.join(&stray[..2])).expect("a folder");
    std::fs::write(folder.join(&stray[..2]).join(&stray[2..]), b"stray").expect("writes");
    std::fs::create_dir_all(folder.join("arriving")).expect("a folder");
    std::fs::write(folder.join("arriving/x#1"), b"half").expect("writes");
    place = place.again().await;
    assert_eq!(place.files().len(), 1);
    assert_eq!(place.store.held().await.expect("answers"), Held { blobs: 1, bytes: 2000 });
    assert!(place.whole(kept.digest).await.is_ok());
    assert_eq!(place.whole(lost.digest).await, Err(BlobError::Missing(lost.digest)));
    assert_eq!(place.store.referred("job:a").await.expect("answers"), Vec::new());
}

#[tokio::test]
async fn notes_stay_beside_their_contents() {
    let mut place = Place::new().await;
    let stored = place.store.put_bytes(&b"x"[..]).await.expect("is stored");
    place.store.note(stored.digest, "{}".into()).await.expect("is kept");
    place = place.again().await;
    let found = place.store.find(stored.digest).await.expect("answers").expect("is there");
    assert_eq!(found, Blob { digest: stored.digest, bytes: 1, note: Some("{}".into()) });
}

#[tokio::test]
async fn a_kind_of_contents_with_bounds_of_its_own_leaves_room_for_others() {
    let place = Place::new().await;
    let kind = place.store.within(ByteSize::new(1024 * KIB), ByteSize::new(3072 * KIB));
    let content = |byte: u8, kib: u64| vec![byte; usize::try_from(kib * KIB).expect("fits")];
    kind.put_bytes(content(1, 600)).await.expect("has room");
    assert_eq!(kind.put_bytes(content(2, 600)).await, Err(BlobError::Full(ByteSize::new(1024 * KIB))));
    place.store.put_bytes(content(3, 1200)).await.expect("the others have room");
    // What others have put there counts.
    assert_eq!(kind.put_bytes(content(4, 1)).await, Err(BlobError::Full(ByteSize::new(1024 * KIB))));
    let wide = place.store.within(ByteSize::from_mib(1 << 20), ByteSize::new(3072 * KIB));
    assert_eq!(wide.settings().max_bytes, settings().max_bytes, "no more than all together");
    assert_eq!(place.store.held().await.expect("answers").blobs, 2);
}

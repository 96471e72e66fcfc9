//! Bodies of answers that are stored contents, as users read them: files of jobs, and what jobs are given.
//!
//! Owns how many of them are open, and how long each may stand still. Must never be in the way of agents, whose reads are bounded by
//! their slots.

use super::problem::ProblemDocument;
use crate::blobs::BlobError;
use crate::supervise;
use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Contents that are read at the same time: each holds a few pieces of 512 KiB, and more would only share one disk and one line.
const READS: usize = 64;
static READING: Semaphore = Semaphore::const_new(READS);
/// Whoever takes no piece for so long has gone, or is slower than 2 KiB in a second, and gives its place to others.
const STALL: Duration = Duration::from_secs(300);
/// Pieces on their way, beside the one in hand. Full: the disk is read no further.
const PIECES: usize = 1;

/// The body that these pieces make. Errors: as many as may be are being read already.
pub(super) fn body<S>(pieces: S) -> Result<Body, ProblemDocument>
where
    S: Stream<Item = Result<Bytes, BlobError>> + Send + 'static,
{
    body_within(&READING, STALL, pieces)
}

fn body_within<S>(places: &'static Semaphore, stall: Duration, pieces: S) -> Result<Body, ProblemDocument>
where
    S: Stream<Item = Result<Bytes, BlobError>> + Send + 'static,
{
    let Ok(place) = places.try_acquire() else {
        let detail = format!("{READS} contents are being read already");
        return Err(ProblemDocument::new("unavailable", detail).retry_after(1));
    };
    let (tell, told) = mpsc::channel(PIECES);
    drop(supervise::spawn("content", async move {
        let _place = place;
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            // An answer that is cut off is shorter than it said, so nobody takes it for whole.
            if tell.send_timeout(piece, stall).await.is_err() {
                return;
            }
        }
    }));
    let taken = futures_util::stream::unfold(told, |mut told| async { told.recv().await.map(|piece| (piece, told)) });
    Ok(Body::from_stream(taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn endless() -> impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static {
        futures_util::stream::repeat_with(|| Ok(Bytes::from_static(b"piece")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_again_when_its_reader_has_all_or_goes_or_stands_still() {
        static PLACES: Semaphore = Semaphore::const_new(1);
        let open = || body_within(&PLACES, STALL, endless());
        let mut first = open().expect("there is a place");
        assert_eq!(first.frame().await.expect("goes on").expect("is read").into_data().expect("data"), "piece");
        assert_eq!(open().expect_err("none is left").code, "unavailable");
        // It takes nothing more, and then finds its end too early.
        let second = loop {
            tokio::time::advance(STALL / 4).await;
            if let Ok(second) = open() {
                break second;
            }
        };
        drop(second);
        while PLACES.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        let short = futures_util::stream::iter([Ok(Bytes::from_static(b"all"))]);
        let whole = body_within(&PLACES, STALL, short).expect("there is a place");
        assert_eq!(whole.collect().await.expect("is read").to_bytes(), "all");
        while PLACES.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
    }
}

//! Bodies of answers that are stored contents, as users read them: files of jobs, and what jobs are given.
//!
//! Owns how many of them are open, and how long each may stand still. Must never be in the way of agents, whose reads are bounded by
//! their slots.

use super::App;
use super::keys::Caller;
use super::places::{Share, Shares, Taken};
use super::problem::ProblemDocument;
use crate::blobs::BlobError;
use crate::supervise;
use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;

/// Contents that are read at the same time: each holds a few pieces of 512 KiB, and more would only share one disk and one line.
pub(super) const READS: usize = 64;
/// Whoever takes no piece for so long gives its place to others; most are cut off before, as slow connections (`server.write_timeout`).
const STALL: Duration = Duration::from_secs(300);
/// Pieces on their way, beside the one in hand. Full: the disk is read no further.
const PIECES: usize = 1;

/// A place for one more. Errors: as many as may be are being read already.
pub(super) fn place(app: &App, caller: &Caller) -> Result<Share, ProblemDocument> {
    place_among(&app.downloads, &caller.name)
}

fn place_among(places: &Shares, key: &str) -> Result<Share, ProblemDocument> {
    places.take(key).map_err(|taken| {
        let detail = match taken {
            Taken::All(most) => format!("{most} contents are being read already"),
            Taken::Own(most) => format!("{most} contents are being read with this key already"),
        };
        ProblemDocument::new("unavailable", detail).retry_after(1)
    })
}

/// The body that these pieces make.
pub(super) fn body<S>(place: Share, pieces: S) -> Body
where
    S: Stream<Item = Result<Bytes, BlobError>> + Send + 'static,
{
    let (tell, told) = mpsc::channel(PIECES);
    drop(supervise::spawn("content", async move {
        let _place = place;
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            // An answer that is cut off is shorter than it said, so nobody takes it for whole.
            if tell.send_timeout(piece, STALL).await.is_err() {
                return;
            }
        }
    }));
    let taken = futures_util::stream::unfold(told, |mut told| async { told.recv().await.map(|piece| (piece, told)) });
    Body::from_stream(taken)
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
        let places = Shares::new(1);
        let open = || place_among(&places, "a").map(|place| body(place, endless()));
        let freed = async || {
            while places.take("a").is_err() {
                tokio::task::yield_now().await;
            }
        };
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
        freed().await;
        let short = futures_util::stream::iter([Ok(Bytes::from_static(b"all"))]);
        let whole = body(place_among(&places, "a").expect("there is a place"), short);
        assert_eq!(whole.collect().await.expect("is read").to_bytes(), "all");
        freed().await;
    }
}

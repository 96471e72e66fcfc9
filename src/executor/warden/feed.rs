//! Inputs on their way to one warden over one link: what is at hand, what is on its way, and how much more may be.
//!
//! Bounded by the credit: no more is on its way than the warden has not taken, so an order is never far behind.

use crate::executor::InputPiece;
use crate::job::Cause;
use crate::protocol::wire::{INPUTS_CREDIT, InputTotals};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes of one part.
const PART: u64 = 32 * 1024;

pub(super) struct Feed {
    pieces: mpsc::Receiver<InputPiece>,
    /// Read, and not on its way yet.
    at_hand: Bytes,
    /// On its way, or taken.
    sent: u64,
    taken: u64,
    /// What the whole is, once that is known.
    totals: Option<InputTotals>,
}

/// Waits until there is more at hand. Errors: there never will be.
pub(super) async fn next(feed: &mut Option<Feed>) -> Result<(), Cause> {
    let Some(feed) = feed.as_mut().filter(|feed| feed.at_hand.is_empty() && feed.totals.is_none()) else {
        return std::future::pending().await;
    };
    match feed.pieces.recv().await {
        Some(InputPiece::Bytes(bytes)) => feed.at_hand = bytes,
        Some(InputPiece::End(totals)) => feed.totals = Some(totals),
        Some(InputPiece::Failed(cause)) => return Err(cause),
        None => return Err(Cause::InputsFailed { reason: "whoever brings them is gone".to_owned() }),
    }
    Ok(())
}

impl Feed {
    pub(super) fn new(pieces: mpsc::Receiver<InputPiece>) -> Self {
        Self { pieces, at_hand: Bytes::new(), sent: 0, taken: 0, totals: None }
    }

    /// The next part, with its place in the stream, if there is one and it has room.
    pub(super) fn part(&mut self) -> Option<(u64, Bytes)> {
        let room = INPUTS_CREDIT.saturating_sub(self.sent - self.taken);
        let size = room.min(PART).min(self.at_hand.len() as u64);
        if size == 0 {
            return None;
        }
        let offset = self.sent;
        self.sent += size;
        Some((offset, self.at_hand.split_to(usize::try_from(size).unwrap_or_default())))
    }

    /// So much is in its place. Errors: more than was sent.
    pub(super) fn taken(&mut self, offset: u64) -> Result<(), String> {
        if offset > self.sent {
            return Err(format!("it has taken {offset} bytes of inputs, and {} were sent", self.sent));
        }
        self.taken = self.taken.max(offset);
        Ok(())
    }

    /// The totals, once they are known and all of it is in its place: either may be the last to be heard of.
    pub(super) fn whole(&self) -> Option<InputTotals> {
        self.totals.filter(|totals| totals.bytes == self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_on_its_way_than_the_credit_and_the_end_is_when_all_is_taken() {
        let (pieces, receiver) = mpsc::channel(4);
        let mut feed = Some(Feed::new(receiver));
        let size = usize::try_from(INPUTS_CREDIT).expect("small") + 5000;
        let totals = InputTotals { entries: 1, bytes: size as u64, sum: 0 };
        pieces.send(InputPiece::Bytes(vec![7; size].into())).await.expect("is taken");
        pieces.send(InputPiece::End(totals)).await.expect("is taken");
        next(&mut feed).await.expect("is there");
        let mut of = feed.take().expect("is there");
        let mut sent = 0;
        while let Some((offset, part)) = of.part() {
            assert_eq!(offset, sent);
            sent += part.len() as u64;
        }
        assert_eq!(sent, INPUTS_CREDIT);
        assert_eq!(of.taken(1000), Ok(()));
        assert_eq!(of.part().map(|(offset, part)| (offset, part.len())), Some((INPUTS_CREDIT, 1000)));
        assert!(of.taken(INPUTS_CREDIT + 1001).is_err());
        assert_eq!(of.taken(INPUTS_CREDIT + 1000), Ok(()));
        assert_eq!(of.part().map(|(_, part)| part.len()), Some(4000));
        assert_eq!(of.taken(size as u64), Ok(()));
        assert_eq!(of.whole(), None, "whether that is all is not known");
        feed = Some(of);
        next(&mut feed).await.expect("is there");
        assert_eq!(feed.expect("is there").whole(), Some(totals));
    }
}

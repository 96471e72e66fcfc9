//! Links to scripted wardens, and what can go wrong with one.

use super::warden::Warden;
use crate::executor::Link;
use crate::protocol::wire::{Decoder, ToWarden};
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

/// What becomes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkFault {
    /// It ends when the warden has written so much, wherever that is in a frame.
    CutAfterWritten(usize),
    /// It ends when the warden has read so much.
    CutAfterRead(usize),
    /// It ends with this word of the lease, which is lost.
    LosesLease(u32),
    /// Nothing passes for so long, and then everything.
    Stalls(Duration),
    /// The agent's side sees nothing and no end, for ever.
    Mute,
    /// Bytes that are no frame come first.
    Noise,
}

/// A word to begin that comes later than this does not come. It is less than what a lease has for such things.
const LATE: Duration = Duration::from_secs(2);

/// Bytes that are no frame, `garbage`'s too.
fn noise() -> Vec<u8> {
    (0..9_000u32).map(|n| (n * 7 % 251) as u8).collect()
}

pub(super) fn open(warden: &Arc<Warden>, fault: Option<LinkFault>) -> Link {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (read, write) = tokio::io::split(ours);
    crate::supervise::spawn("scripted link", serve(Arc::clone(warden), theirs, fault));
    let output = stream::unfold(read, |mut read| async move {
        let mut bytes = vec![0; 4096];
        match read.read(&mut bytes).await {
            Ok(count) if count > 0 => {
                bytes.truncate(count);
                Some((Ok(bytes::Bytes::from(bytes)), read))
            }
            _ => None,
        }
    });
    Link { output: Box::pin(output), input: Box::pin(write) }
}

/// Carries what the warden says and hears, until the link or the cell ends.
async fn serve(warden: Arc<Warden>, mut stream: tokio::io::DuplexStream, fault: Option<LinkFault>) {
    let mut news = warden.news();
    let (mut decoder, mut bytes) = (Decoder::new(), vec![0; 4096]);
    let (mut epoch, mut written, mut heard, mut leases) = (0, 0, 0, 0);
    let mut quiet_until = match fault {
        Some(LinkFault::Stalls(span)) => Some(Instant::now() + span),
        _ => None,
    };
    let mute = fault == Some(LinkFault::Mute) || warden.is_mute();
    if fault == Some(LinkFault::Noise) && stream.write_all(&noise()).await.is_err() {
        return;
    }
    let mut noisy = false;
    let long = matches!(fault, Some(LinkFault::Stalls(span)) if span > LATE);
    loop {
        news.borrow_and_update();
        if quiet_until.is_none() && !mute {
            if warden.is_noisy() && epoch > 0 && !std::mem::replace(&mut noisy, true) {
                let _ = stream.write_all(&noise()).await;
            }
            let Some(mut said) = warden.say(epoch) else { return };
            if !said.bytes.is_empty() {
                if let Some(LinkFault::CutAfterWritten(most)) = fault
                    && written + said.bytes.len() >= most
                {
                    said.bytes.truncate(most.saturating_sub(written));
                    said.last = true;
                }
                written += said.bytes.len();
                if stream.write_all(&said.bytes).await.is_err() || said.last {
                    return;
                }
                continue;
            }
        } else if warden.say(0).is_none() {
            return;
        }
        tokio::select! {
            biased;
            () = sleep_until(quiet_until.unwrap_or_else(Instant::now)), if quiet_until.is_some() => quiet_until = None,
            changed = news.changed() => if changed.is_err() { return },
            read = stream.read(&mut bytes), if quiet_until.is_none() => {
                let Ok(mut count @ 1..) = read else { return };
                let mut last = false;
                if let Some(LinkFault::CutAfterRead(most)) = fault
                    && heard + count >= most
                {
                    count = most.saturating_sub(heard);
                    last = true;
                }
                heard += count;
                decoder.feed(&bytes[..count]);
                while let Some(frame) = decoder.next() {
                    let message = ToWarden::decode(&frame).expect("the agent's frames are whole");
                    if matches!(message, ToWarden::Attach { .. }) {
                        epoch = frame.epoch;
                    }
                    // An engine that stands still and then brings the word to begin: docs/simulation.md says why not.
                    if long && matches!(message, ToWarden::Commit { .. }) {
                        return;
                    }
                    leases += u32::from(matches!(message, ToWarden::Lease { .. }));
                    if fault == Some(LinkFault::LosesLease(leases)) {
                        return;
                    }
                    warden.hear(frame.epoch, message);
                }
                if last {
                    return;
                }
            }
        }
    }
}

//! What a job has used of its way out, and what it was refused: the one place that counts, and so the one that says enough.

use super::EgressSettings;
use super::judge::No;
use crate::job::egress::{EgressRefusal, EgressUse};
use crate::job::{AttemptId, Egress, shown};
use crate::protocol::wire::{EGRESS_PIECE, EgressFault};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Places that are told one by one; what is beyond is only counted.
const PLACES_MAX: usize = 64;

/// Of one attempt, since this process has it.
#[derive(Debug)]
pub(super) struct Tally {
    attempt: AttemptId,
    most_asked: u64,
    most_bytes: u64,
    most_lookups: u64,
    asked: AtomicU64,
    connections: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    lookups: AtomicU64,
    refused: AtomicU64,
    refusals: Mutex<Vec<EgressRefusal>>,
    /// How fast bytes may go, both ways together, if that is bounded.
    rate: Option<DefaultDirectRateLimiter>,
}

/// No less than this in a second: a piece has to fit into what is let through at once.
const SLOWEST: u32 = 64 * 1024;
const _: () = assert!(SLOWEST as usize >= EGRESS_PIECE);

impl Tally {
    pub(super) fn new(attempt: AttemptId, asked: &Egress, settings: &EgressSettings) -> Self {
        Self {
            attempt,
            most_asked: asked.connections.unwrap_or(u64::MAX).min(settings.connections),
            most_bytes: asked.bytes.map_or(u64::MAX, |bytes| bytes.as_u64()).min(settings.bytes.as_u64()),
            most_lookups: settings.lookups,
            asked: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refusals: Mutex::default(),
            rate: Self::rate(settings),
        }
    }

    fn rate(settings: &EgressSettings) -> Option<DefaultDirectRateLimiter> {
        let most = u32::try_from(settings.max_rate.as_u64()).unwrap_or(u32::MAX);
        let most = NonZeroU32::new(most)?.max(NonZeroU32::new(SLOWEST)?);
        // An eighth of a second at once, and whole pieces.
        let burst = most.get() / 8;
        Some(RateLimiter::direct(Quota::per_second(most).allow_burst(NonZeroU32::new(burst.max(SLOWEST))?)))
    }

    /// Waits until so many bytes more may go.
    pub(super) async fn pace(&self, bytes: usize) {
        let Some(rate) = &self.rate else { return };
        let mut left = u32::try_from(bytes).unwrap_or(u32::MAX);
        while let Some(part) = NonZeroU32::new(left.min(SLOWEST)) {
            // A part that is larger than what is let through at once would be refused; there is none.
            let _ = rate.until_n_ready(part).await;
            left -= part.get();
        }
    }

    /// One more connection is asked for.
    pub(super) fn ask(&self) -> Result<(), No> {
        if self.asked.fetch_add(1, Relaxed) >= self.most_asked {
            let reason = format!("the job has asked for {} connections, and gets no more", self.most_asked);
            return Err(No::new(EgressFault::Limit, "too_many_connections", reason));
        }
        if self.bytes() >= self.most_bytes {
            return Err(self.enough());
        }
        Ok(())
    }

    /// One more name is looked up.
    pub(super) fn look_up(&self) -> Result<(), No> {
        if self.lookups.fetch_add(1, Relaxed) >= self.most_lookups {
            let reason = format!("the job has had {} names looked up, and gets no more", self.most_lookups);
            return Err(No::new(EgressFault::Limit, "too_many_lookups", reason));
        }
        Ok(())
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// So much came in. Errors: it was enough.
    pub(super) fn came_in(&self, bytes: usize) -> Result<(), No> {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.within()
    }

    /// So much is to go out. Errors: it is too much.
    pub(super) fn goes_out(&self, bytes: usize) -> Result<(), No> {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.within()
    }

    fn within(&self) -> Result<(), No> {
        if self.bytes() > self.most_bytes { Err(self.enough()) } else { Ok(()) }
    }

    fn bytes(&self) -> u64 {
        self.bytes_in.load(Relaxed) + self.bytes_out.load(Relaxed)
    }

    fn enough(&self) -> No {
        let reason = format!("the job has moved {} bytes, and gets no more", self.most_bytes);
        No::new(EgressFault::Limit, "too_many_bytes", reason)
    }

    /// A connection was not made, or was cut off.
    pub(super) fn refuse(&self, host: &str, port: u16, no: &No) {
        self.refused.fetch_add(1, Relaxed);
        let host = shown(host);
        let mut all = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter_mut().find(|one| one.host == host && one.port == port && one.code == no.code) {
            known.times += 1;
        } else if all.len() < PLACES_MAX {
            tracing::info!(attempt = %self.attempt, host, port, code = no.code, reason = %no.reason, "the job was refused a connection");
            all.push(EgressRefusal { host, port, code: no.code.to_owned(), reason: no.reason.clone(), times: 1 });
        }
    }

    pub(super) fn told(&self) -> EgressUse {
        EgressUse {
            connections: self.connections.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            refused: self.refused.load(Relaxed),
            refusals: self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

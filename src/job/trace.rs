//! Which trace a job belongs to: what whoever submits it says in W3C Trace Context, and the ids of the spans that tell of it.
//!
//! Ids of spans are made of the job's own id, so that every process that has a part in a job names the same span the same way, also after
//! a crash, without having to hand them around. Pure.

use super::{AttemptId, JobId};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Bytes of a `tracestate`, as its standard wants it to be passed on at least.
const MOST_STATE: usize = 512;
/// Members of one.
const MOST_MEMBERS: usize = 32;

/// A trace's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// A span's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SpanId {
    fn of(text: &str) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        // Zero is no span's id.
        id[7] |= u8::from(id == [0; 8]);
        Self(id)
    }

    /// The span of a job, from its submission to its end.
    pub fn of_job(job: JobId) -> Self {
        Self::of(&format!("job {job}"))
    }

    /// A part of a job: its wait for a try, for example.
    pub fn of_part(job: JobId, what: &str) -> Self {
        Self::of(&format!("job {job} {what}"))
    }

    /// One try of a job.
    pub fn of_attempt(attempt: AttemptId) -> Self {
        Self::of(&format!("attempt {attempt}"))
    }

    /// A part of a try.
    pub fn of_phase(attempt: AttemptId, what: &str) -> Self {
        Self::of(&format!("attempt {attempt} {what}"))
    }
}

/// Where a request for a job stands in somebody's trace: `traceparent` and `tracestate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that asked.
    pub parent: SpanId,
    /// Bit 0: the trace is recorded.
    pub flags: u8,
    /// What other systems want to have passed on; empty for nothing.
    pub state: String,
}

impl TraceContext {
    /// Reads the two headers. `None`: the first one is no `traceparent`; the standard wants such a one to be as good as absent. A
    /// `tracestate` that cannot be read is left out, as the standard has it.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let [version] = bytes::<1>(version)?;
        // Later versions may have more behind these; this one may not.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace, parent, [flags]) = (bytes::<16>(trace)?, bytes::<8>(parent)?, bytes::<1>(flags)?);
        if trace == [0; 16] || parent == [0; 8] {
            return None;
        }
        let state = tracestate.map(str::trim).filter(|state| is_state(state)).unwrap_or_default().to_owned();
        // Of the flags only the first is defined in version 0.
        Some(Self { trace: TraceId(trace), parent: SpanId(parent), flags: flags & 1, state })
    }

    /// Whether whoever began the trace records it.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The header.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.parent, self.flags)
    }

    /// The same trace, seen from another span of it.
    #[must_use]
    pub fn seen_from(&self, span: SpanId) -> Self {
        Self { parent: span, ..self.clone() }
    }
}

/// The trace of a job: whose it is to be a part of, or its own, whose id is the job's.
pub fn trace_of(job: JobId, context: Option<&TraceContext>) -> TraceId {
    context.map_or_else(|| TraceId(job.bytes()), |context| context.trace)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut read = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in read.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(read)
}

/// A list of `key=value`, bounded, without anything that does not belong into a header or a variable.
fn is_state(state: &str) -> bool {
    let member = |member: &str| {
        let member = member.trim();
        member.is_empty() || member.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
    };
    state.len() <= MOST_STATE
        && state.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && state.split(',').count() <= MOST_MEMBERS
        && state.split(',').all(member)
}

/// As it stands in a spec's document.
#[derive(Serialize)]
struct Document<'a> {
    parent: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    state: &'a str,
}

impl Serialize for TraceContext {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Document { parent: self.traceparent(), state: &self.state }.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_right_is_read_and_written_the_same() {
        let context = TraceContext::parse(PARENT, Some("congo=t61rcWkgMzE,rojo=00f0")).expect("is one");
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(context.state, "congo=t61rcWkgMzE,rojo=00f0");
        assert!(context.is_sampled());
        // A later version may have more, and is passed on as the one that is known.
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings";
        assert_eq!(TraceContext::parse(later, None).expect("is one").traceparent(), PARENT);
        let other = context.seen_from(SpanId([1; 8]));
        assert_eq!(other.traceparent(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010101-01");
    }

    #[test]
    fn what_is_wrong_is_as_good_as_absent() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47ü-00f067aa0ba902b7-01",
        ] {
            assert!(TraceContext::parse(bad, None).is_none(), "{bad}");
        }
        for bad in ["novalue", "a=", "=b", "a=b\nc=d", "ü=1", &format!("a={}", "x".repeat(600)), &"a=b,".repeat(40)] {
            assert_eq!(TraceContext::parse(PARENT, Some(bad)).expect("is one").state, "", "{bad}");
        }
    }

    #[test]
    fn ids_are_the_same_every_time_and_no_two_are() {
        let job: JobId = "0197b5c0-0000-7000-8000-000000000001".parse().expect("an id");
        let attempt = AttemptId { job, attempt: 1, part: 0 };
        let ids = [
            SpanId::of_job(job),
            SpanId::of_part(job, "queued 1"),
            SpanId::of_attempt(attempt),
            SpanId::of_attempt(AttemptId { job, attempt: 2, part: 0 }),
            SpanId::of_phase(attempt, "run"),
        ];
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        assert_eq!(SpanId::of_job(job), ids[0]);
        assert_eq!(trace_of(job, None).to_string(), job.simple());
    }
}

//! What a span says. Pure.

use crate::job::{SpanId, TraceId, UnixMillis};
use std::borrow::Cow;

/// What an attribute says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A number.
    Int(i64),
    /// Yes or no.
    Flag(bool),
    /// Several words.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// Names and what they say.
pub type Attributes = Vec<(Cow<'static, str>, Value)>;

/// Whose side of something a span tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Within one part.
    Internal,
    /// The side that was asked.
    Server,
}

/// A moment in a span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanEvent {
    /// What happened.
    pub name: String,
    /// When.
    pub at: UnixMillis,
    /// More of it.
    pub attributes: Attributes,
}

/// Something that took a while, and is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Of which trace.
    pub trace: TraceId,
    /// Its own id.
    pub id: SpanId,
    /// What it is a part of.
    pub parent: Option<SpanId>,
    /// `tracestate`.
    pub state: String,
    /// What it is.
    pub name: String,
    /// Whose side.
    pub kind: Kind,
    /// When it began.
    pub began: UnixMillis,
    /// When it was over.
    pub ended: UnixMillis,
    /// More of it.
    pub attributes: Attributes,
    /// What happened meanwhile.
    pub events: Vec<SpanEvent>,
    /// Why it went wrong, in words, if it did.
    pub error: Option<String>,
}

//! Spans as OTLP has them: protocol buffers of `opentelemetry.proto.collector.trace.v1`, and the one field of the answer that matters. Pure.
//!
//! Numbers of fields are those of opentelemetry-proto 1.x; a test decodes what is written here with the official definitions.

use super::span::{Kind, Span, Value};
use std::borrow::Cow;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// Nanoseconds of a millisecond.
const NANOS: u64 = 1_000_000;

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn tag(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    fn number(&mut self, field: u32, number: u64) {
        self.tag(field, VARINT);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u32, number: u64) {
        self.tag(field, FIXED64);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, number: u32) {
        self.tag(field, FIXED32);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A text, unless it is empty.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            // Of several alternatives one is there, also when it is empty.
            Value::Text(text) => self.bytes(1, text.as_bytes()),
            Value::Flag(flag) => self.number(2, u64::from(*flag)),
            Value::Int(number) => self.number(3, number.cast_unsigned()),
            Value::Texts(texts) => self.message(5, |array| {
                texts.iter().for_each(|text| array.message(1, |value| value.bytes(1, text.as_bytes())));
            }),
        }
    }

    fn attribute(&mut self, field: u32, name: &str, value: &Value) {
        self.message(field, |pair| {
            pair.text(1, name);
            pair.message(2, |to| to.value(value));
        });
    }

    fn attributes(&mut self, field: u32, attributes: &[(Cow<'static, str>, Value)]) {
        attributes.iter().for_each(|(name, value)| self.attribute(field, name, value));
    }

    fn span(&mut self, span: &Span) {
        self.bytes(1, &span.trace.0);
        self.bytes(2, &span.id.0);
        self.text(3, &span.state);
        if let Some(parent) = &span.parent {
            self.bytes(4, &parent.0);
        }
        self.text(5, &span.name);
        self.number(
            6,
            match span.kind {
                Kind::Internal => 1,
                Kind::Server => 2,
            },
        );
        self.fixed64(7, span.began.as_u64().saturating_mul(NANOS));
        self.fixed64(8, span.ended.as_u64().saturating_mul(NANOS));
        self.attributes(9, &span.attributes);
        for event in &span.events {
            self.message(11, |to| {
                to.fixed64(1, event.at.as_u64().saturating_mul(NANOS));
                to.text(2, &event.name);
                to.attributes(3, &event.attributes);
            });
        }
        if let Some(words) = &span.error {
            self.message(15, |to| {
                to.text(2, words);
                to.number(3, 2);
            });
        }
        // Sampled; whether the parent is another process's is not said.
        self.fixed32(16, 1);
    }
}

/// A request for a collector: these spans of this resource.
pub fn encode(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of| {
        of.message(1, |to| {
            resource.iter().for_each(|(name, value)| to.attribute(1, name, &Value::Text(value.clone())));
        });
        of.message(2, |scope| {
            scope.message(1, |to| {
                to.text(1, env!("CARGO_PKG_NAME"));
                to.text(2, env!("CARGO_PKG_VERSION"));
            });
            spans.iter().for_each(|span| scope.message(2, |to| to.span(span)));
        });
    });
    request.0
}

/// How many spans an answer says were not taken. One that cannot be read says nothing.
pub fn rejected(answer: &[u8]) -> u64 {
    let find = |message: &[u8], wanted: u32| -> Option<Field> {
        let mut rest = message;
        while !rest.is_empty() {
            let (number, field, left) = read_field(rest)?;
            if number == wanted {
                return Some(field);
            }
            rest = left;
        }
        None
    };
    let Some(Field::Bytes(partial)) = find(answer, 1) else { return 0 };
    match find(&partial, 1) {
        Some(Field::Number(rejected)) => rejected,
        Some(Field::Bytes(_) | Field::Other) | None => 0,
    }
}

enum Field {
    Number(u64),
    Bytes(Vec<u8>),
    Other,
}

/// A field's number, what it says, and what follows it.
fn read_field(from: &[u8]) -> Option<(u32, Field, &[u8])> {
    let (tag, rest) = read_varint(from)?;
    let number = u32::try_from(tag >> 3).ok()?;
    match (tag & 7) as u32 {
        VARINT => read_varint(rest).map(|(value, rest)| (number, Field::Number(value), rest)),
        FIXED64 => Some((number, Field::Other, rest.get(8..)?)),
        FIXED32 => Some((number, Field::Other, rest.get(4..)?)),
        BYTES => {
            let (length, rest) = read_varint(rest)?;
            let length = usize::try_from(length).ok()?;
            Some((number, Field::Bytes(rest.get(..length)?.to_vec()), rest.get(length..)?))
        }
        _ => None,
    }
}

fn read_varint(from: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (at, byte) in from.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, &from[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_says_was_not_taken_is_read_and_nonsense_says_nothing() {
        let mut answer = Message::default();
        answer.message(1, |partial| {
            partial.text(2, "too many attributes");
            partial.number(1, 300);
        });
        assert_eq!(rejected(&answer.0), 300);
        assert_eq!(rejected(&[]), 0);
        assert_eq!(rejected(b"{\"partialSuccess\":{}}"), 0);
        for cut in 0..answer.0.len() {
            assert!(matches!(rejected(&answer.0[..cut]), 0 | 300));
        }
        for bytes in 0..=u16::MAX {
            let _ = rejected(&[&bytes.to_le_bytes()[..], &[0xff; 12]].concat());
        }
    }
}

//! The fields of a payload, read strictly and written in order.

use super::frame::{u32_at, u64_at};

/// A payload that is not what its kind says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPayload(pub &'static str);

impl std::fmt::Display for BadPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadPayload {}

/// Reads the fields of a payload in order.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], BadPayload> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(BadPayload("a field is cut off"))?;
        self.0 = tail;
        Ok(head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, BadPayload> {
        Ok(self.take(1)?[0])
    }
    pub(super) fn u32(&mut self) -> Result<u32, BadPayload> {
        Ok(u32_at(self.take(4)?, 0))
    }
    pub(super) fn i32(&mut self) -> Result<i32, BadPayload> {
        Ok(self.u32()? as i32)
    }
    pub(super) fn u64(&mut self) -> Result<u64, BadPayload> {
        Ok(u64_at(self.take(8)?, 0))
    }
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], BadPayload> {
        let len = self.u32()? as usize;
        self.take(len)
    }
    pub(super) fn text(&mut self) -> Result<String, BadPayload> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadPayload("a text is not UTF-8"))
    }
    pub(super) fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, BadPayload>) -> Result<Vec<T>, BadPayload> {
        let count = self.u32()? as usize;
        // Every item takes a byte at least, so a count beyond what is left is a lie, and nothing is reserved for it.
        if count > self.0.len() {
            return Err(BadPayload("a list is longer than its payload"));
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
    pub(super) fn end(self) -> Result<(), BadPayload> {
        if self.0.is_empty() { Ok(()) } else { Err(BadPayload("there is more than the fields")) }
    }
}

/// Writes the fields of a payload in order.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(super) fn bytes(self, value: &[u8]) -> Self {
        let mut writer = self.u32(value.len() as u32);
        writer.0.extend_from_slice(value);
        writer
    }
    pub(super) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }
    pub(super) fn list<T>(self, items: &[T], item: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().fold(self.u32(items.len() as u32), item)
    }
}

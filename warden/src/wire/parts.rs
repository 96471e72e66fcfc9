//! Tagged parts at the end of a payload. Each is written only where there is something to say, so that a reader of before it is asked
//! for nothing that it does not know; one that it does not know all the same is refused, and never passed over.

use super::fields::{BadPayload, Reader, Writer};

/// For a tag that nobody knows.
pub(super) const UNKNOWN: BadPayload = BadPayload("an unknown part");

/// Writes a part, if there is one.
pub(super) fn write<T>(w: Writer, tag: u8, part: Option<&T>, fields: impl FnOnce(&T, Writer) -> Writer) -> Writer {
    match part {
        Some(part) => w.u8(tag).bytes(&fields(part, Writer::default()).0),
        None => w,
    }
}

/// Reads parts to the end of the payload. `part` takes the fields of one, and all of them.
pub(super) fn read(
    r: &mut Reader<'_>,
    mut part: impl FnMut(u8, &mut Reader<'_>) -> Result<(), BadPayload>,
) -> Result<(), BadPayload> {
    while !r.0.is_empty() {
        let tag = r.u8()?;
        let mut fields = Reader(r.bytes()?);
        part(tag, &mut fields)?;
        fields.end()?;
    }
    Ok(())
}

/// Keeps a part that may come once.
pub(super) fn once<T>(place: &mut Option<T>, part: T) -> Result<(), BadPayload> {
    match place.replace(part) {
        None => Ok(()),
        Some(_) => Err(BadPayload("a part comes twice")),
    }
}

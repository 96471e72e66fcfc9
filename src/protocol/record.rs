//! Frames of output on their way over a WebSocket, in both directions: agent to backend and backend to viewer.
//!
//! A record is `len u32 · seq u64 · time_us u64 · stream u8 · bytes`, little endian; a message carries one or more.
//! A reader that does not know gaps would take one for damage: only jobs that ask for them have any.

/// Bytes before the output in a record.
pub const RECORD_HEADER: usize = 21;

/// One record, borrowed from its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The frame's number.
    pub seq: u64,
    /// When it was written, microseconds since 1970.
    pub time_us: u64,
    /// 1 standard output, 2 standard error; 3 and 4 a gap in the one and the other, whose size in digits takes the place of the output.
    pub stream: u8,
    /// The output.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// Appends it to a message.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.time_us.to_le_bytes());
        out.push(self.stream);
        out.extend_from_slice(self.bytes);
    }
}

/// Every record of a message. Errors: one is cut off, or of no stream.
pub fn read_records(mut rest: &[u8]) -> Result<Vec<Record<'_>>, &'static str> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(RECORD_HEADER).ok_or("a record is cut off")?;
        let len = usize::try_from(number(&head[..4])).unwrap_or(usize::MAX);
        let (bytes, tail) = tail.split_at_checked(len).ok_or("a record is cut off")?;
        if !matches!(head[20], 1..=4) {
            return Err("a record of no stream");
        }
        records.push(Record { seq: number(&head[4..12]), time_us: number(&head[12..20]), stream: head[20], bytes });
        rest = tail;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_reads_back_and_a_cut_is_seen(
            parts in prop::collection::vec((any::<u64>(), any::<u64>(), 1u8..=4, prop::collection::vec(any::<u8>(), 0..40)), 1..6),
            cut in 1usize..20,
        ) {
            let records: Vec<Record<'_>> = parts
                .iter()
                .map(|(seq, time_us, stream, bytes)| Record { seq: *seq, time_us: *time_us, stream: *stream, bytes })
                .collect();
            let mut message = Vec::new();
            for record in &records {
                record.write(&mut message);
            }
            prop_assert_eq!(&read_records(&message).expect("reads"), &records);
            prop_assert!(read_records(&message[..message.len() - cut.min(RECORD_HEADER - 1)]).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_records(&bytes);
        }
    }
}

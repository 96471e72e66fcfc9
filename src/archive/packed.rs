//! The bytes of a tar, out of what they are packed in, with an eye on how much comes out of how little.

use super::{Refusal, Unread};
use std::io::{self, BufReader, Read};

/// What zstd may keep to look back to; what its levels up to 21 need. It is memory of ours.
const WINDOW_LOG: u32 = 25;
/// So much may come out of anything; beyond it, not more than so many times of what went in.
const UNSUSPECTED: u64 = 64 << 20;
const RATIO: u64 = 1000;
const INPUT: usize = 64 * 1024;

/// Counts what it passes on, and keeps the failure of its source apart from that of the packing.
struct Counted<R> {
    inner: R,
    passed: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(to) {
                Ok(count) => {
                    self.passed += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = Some(error);
                    return Err(io::Error::other("the source failed"));
                }
            }
        }
    }
}

/// What was read to know the packing, and the rest.
type FromStart<R> = io::Chain<io::Cursor<Vec<u8>>, Counted<R>>;

enum Packing<R: Read> {
    Plain(FromStart<R>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<FromStart<R>>>>),
}

/// What is in the packing.
pub(super) struct Source<R: Read> {
    packing: Packing<R>,
    came_out: u64,
    most: u64,
}

/// What people pack with that is not taken, by its first bytes.
const OTHERS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
];
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

impl<R: Read> Source<R> {
    /// Looks at the first bytes. At most `most` bytes are taken out.
    pub(super) fn open(source: R, most: u64) -> Result<Self, Unread> {
        let mut counted = Counted { inner: source, passed: 0, failed: None };
        let mut first = Vec::new();
        let looked = (&mut counted).take(8).read_to_end(&mut first);
        if let Some(error) = counted.failed.take() {
            return Err(error.into());
        }
        looked?;
        if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| first.starts_with(magic)) {
            let reason = format!("the archive is packed by {name}: give a plain tar, or one packed by zstd");
            return Err(Refusal::whole("foreign_packing", reason).into());
        }
        if first.is_empty() {
            return Err(Refusal::whole("cut_off", "the archive is empty: not even its end is there").into());
        }
        let is_zstd = first.starts_with(ZSTD);
        let whole = io::Cursor::new(first).chain(counted);
        let packing = if is_zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(INPUT, whole))?;
            decoder.window_log_max(WINDOW_LOG)?;
            Packing::Zstd(Box::new(decoder))
        } else {
            Packing::Plain(whole)
        };
        Ok(Self { packing, came_out: 0, most })
    }

    /// Reads some; 0 at the end.
    pub(super) fn read(&mut self, to: &mut [u8]) -> Result<usize, Unread> {
        let (read, counted) = match &mut self.packing {
            Packing::Plain(source) => {
                let read = source.read(to);
                (read, source.get_mut().1)
            }
            Packing::Zstd(decoder) => {
                let read = decoder.read(to);
                (read, decoder.get_mut().get_mut().get_mut().1)
            }
        };
        let went_in = counted.passed;
        let failed = counted.failed.take();
        match (read, failed) {
            (_, Some(error)) => Err(error.into()),
            (Ok(count), None) => {
                self.came_out += count as u64;
                if self.came_out > self.most {
                    return Err(Refusal::whole(
                        "bomb",
                        format!("the archive is longer than {} bytes unpacked", self.most),
                    )
                    .into());
                }
                if self.came_out > UNSUSPECTED && self.came_out / RATIO > went_in {
                    let reason = format!("more than {RATIO} bytes come out of each byte of the archive");
                    return Err(Refusal::whole("ratio", reason).into());
                }
                Ok(count)
            }
            (Err(error), None) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Refusal::whole("cut_off", "the archive ends in the middle of its packing").into())
            }
            (Err(error), None) => {
                Err(Refusal::whole("bad_zstd", format!("the archive cannot be unpacked: {error}")).into())
            }
        }
    }
}

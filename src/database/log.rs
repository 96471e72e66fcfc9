//! Whether a write-ahead log has lost something at its end.
//!
//! SQLite reads a log up to the first frame whose checksum is wrong and takes that for the end: after a crash it is. So one
//! bit in the middle silently takes back everything that was committed after it. Seen here by what lies behind: a frame of this
//! log, in whole or in part, where by the checksums there is none. Reads only, and knows only the file format
//! (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).

use super::with_suffix;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Result};
use std::path::Path;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Says how much of the file's log cannot be read, if some of it cannot. To be asked before the file is opened, which
/// forgets it. A log that cannot be read at all is left for SQLite to complain about.
pub fn lost_end(path: &Path) -> Option<String> {
    let log = File::open(with_suffix(path, "-wal")).ok()?;
    scan(BufReader::with_capacity(1 << 16, log)).ok().flatten()
}

fn scan(mut log: impl Read) -> Result<Option<String>> {
    let mut header = [0; HEADER];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let unreadable = || Ok(Some("its write-ahead log cannot be read; what was written last is lost".to_owned()));
    let big_endian = match word(&header, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return unreadable(),
    };
    let mut sum = Sum { big_endian, words: [0, 0] };
    sum.add(&header[..24]);
    let page = word(&header, 2) as usize;
    if sum.words != [word(&header, 6), word(&header, 7)] || !page.is_power_of_two() || !(512..=65_536).contains(&page) {
        return unreadable();
    }
    let salts = [word(&header, 4), word(&header, 5)];
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut good, mut behind) = (0, 0);
    while fill(&mut log, &mut frame)? {
        let own = [word(&frame, 2), word(&frame, 3)];
        if behind == 0 && own == salts {
            let mut next = sum;
            next.add(&frame[..8]);
            next.add(&frame[FRAME_HEADER..]);
            if next.words == [word(&frame, 4), word(&frame, 5)] {
                sum = next;
                good += 1;
                continue;
            }
        }
        // What an earlier round of the log left behind has other salts, both of them. One that fits was written in this
        // round, and the other was changed.
        if own[0] == salts[0] || own[1] == salts[1] {
            behind += 1;
        } else if behind == 0 {
            // Either the end, or a frame whose salts are beyond recognition: what follows shows which.
            behind = usize::from(follows(&mut log, &mut frame, salts)?);
            break;
        }
    }
    if behind == 0 {
        return Ok(None);
    }
    Ok(Some(format!("its write-ahead log cannot be read behind page {good}; what was written after it is lost")))
}

/// Whether a frame of this round comes later.
fn follows(log: &mut impl Read, frame: &mut [u8], salts: [u32; 2]) -> Result<bool> {
    while fill(log, frame)? {
        if [word(frame, 2), word(frame, 3)] == salts {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Fills the buffer; false at the end, also when there is a part of it.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    match from.read_exact(buffer) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

/// The n-th word of a header.
fn word(bytes: &[u8], n: usize) -> u32 {
    bytes.as_chunks::<4>().0.get(n).map_or(0, |word| u32::from_be_bytes(*word))
}

/// The running checksum of a log.
#[derive(Clone, Copy)]
struct Sum {
    big_endian: bool,
    words: [u32; 2],
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let [mut first, mut second] = self.words;
        for pair in bytes.as_chunks::<4>().0.as_chunks::<2>().0 {
            first = first.wrapping_add(read(pair[0])).wrapping_add(second);
            second = second.wrapping_add(read(pair[1])).wrapping_add(first);
        }
        self.words = [first, second];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use std::path::PathBuf;

    /// A log of two rounds: the second one is shorter, so that the end of the first lies behind it.
    fn two_rounds() -> (tempfile::TempDir, PathBuf, Connection) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.db");
        let db = Connection::open(&path).expect("opens");
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER)").expect("makes");
        for round in [8, 3] {
            for n in 0..round {
                db.execute("INSERT INTO t VALUES (?1)", [n]).expect("writes");
            }
            if round == 8 {
                db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).expect("starts a new round");
            }
        }
        (dir, path, db)
    }

    #[test]
    fn an_intact_log_has_lost_nothing_and_any_bit_of_its_frames_counts() {
        let (_dir, path, _db) = two_rounds();
        let log = std::fs::read(with_suffix(&path, "-wal")).expect("reads");
        let frame = FRAME_HEADER + 4096;
        assert_eq!(log.len(), HEADER + 10 * frame, "ten frames of the first round, three of them written over");
        assert_eq!(scan(&log[..]).expect("reads"), None);
        // Whatever a crash cuts off is an end like any other.
        for length in [0, 20, HEADER, HEADER + 10, HEADER + frame, log.len() - 1] {
            assert_eq!(scan(&log[..length]).expect("reads"), None, "{length}");
        }
        for at in [0, 9, 30, HEADER, HEADER + 5, HEADER + 9, HEADER + 13, HEADER + 17, HEADER + 2 * frame + 300] {
            let mut log = log.clone();
            log[at] ^= 4;
            assert!(scan(&log[..]).expect("reads").is_some(), "byte {at}");
        }
        let mut both = log.clone();
        both[HEADER + 8..HEADER + 16].fill(0);
        assert!(scan(&both[..]).expect("reads").is_some(), "others follow");
        let mut old = log.clone();
        old[HEADER + 5 * frame + 100] ^= 1;
        assert_eq!(scan(&old[..]).expect("reads"), None, "nothing of what was left behind counts");
    }

    #[test]
    fn logs_of_machines_with_the_other_byte_order_are_read() {
        let (_dir, path, _db) = two_rounds();
        let mut log = std::fs::read(with_suffix(&path, "-wal")).expect("reads");
        // The same log, summed the other way.
        log[3] = 0x83;
        let mut sum = Sum { big_endian: true, words: [0, 0] };
        sum.add(&log[..24]);
        let put = |log: &mut [u8], at: usize, words: [u32; 2]| {
            log[at..at + 4].copy_from_slice(&words[0].to_be_bytes());
            log[at + 4..at + 8].copy_from_slice(&words[1].to_be_bytes());
        };
        put(&mut log, 24, sum.words);
        for n in 0..3 {
            let at = HEADER + n * (FRAME_HEADER + 4096);
            sum.add(&log[at..at + 8]);
            sum.add(&log[at + FRAME_HEADER..at + FRAME_HEADER + 4096]);
            put(&mut log, at + 16, sum.words);
        }
        assert_eq!(scan(&log[..]).expect("reads"), None);
        log[HEADER + 100] ^= 1;
        assert!(scan(&log[..]).expect("reads").is_some());
    }
}

//! The last lines of a log. Reads from the end, and no more than it must.

use crate::logstore::{LogError, LogReader, Stream};
use serde::Serialize;
use std::collections::VecDeque;

/// Lines that are kept.
const LINES: usize = 50;
/// A longer line is cut.
const LINE_CHARS: usize = 500;
/// Frames that are looked at first; twice as many each time until there are lines enough.
const FIRST_FRAMES: u64 = 64;
/// No further back than into so much output: lines can be long.
const MOST_BYTES: usize = 1 << 20;
/// Read at once.
const BLOCK: usize = 256 << 10;

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct Line {
    pub(super) stream: &'static str,
    /// What is not UTF-8 is replaced.
    pub(super) text: String,
}

/// The last lines of a log that ends with frame `last`, over both streams, as they were completed.
pub(super) fn last_lines(reader: &mut LogReader, last: u64) -> Result<Vec<Line>, LogError> {
    let mut back = FIRST_FRAMES;
    loop {
        let from = (last + 1).saturating_sub(back).max(1);
        let (mut lines, mut bytes, mut next) = (Lines::new(from > 1), 0, from);
        while next <= last {
            let frames = reader.read(next, BLOCK)?;
            let Some(end) = frames.last() else { break };
            next = end.seq + 1;
            for frame in frames.iter().filter(|frame| frame.seq <= last) {
                bytes += frame.bytes.len();
                match frame.gap {
                    0 => lines.push(frame.stream, &frame.bytes),
                    gap => lines.gap(frame.stream, gap),
                }
            }
        }
        if lines.done.len() >= LINES || from == 1 || bytes >= MOST_BYTES {
            return Ok(lines.finish());
        }
        back *= 2;
    }
}

/// Puts lines together from pieces of two streams.
struct Lines {
    done: VecDeque<Line>,
    /// The unfinished line of each stream; `None` before the first line end when the log was entered in the middle.
    open: [Option<Vec<u8>>; 2],
}

impl Lines {
    fn new(in_the_middle: bool) -> Self {
        let open = || (!in_the_middle).then(Vec::new);
        Self { done: VecDeque::new(), open: [open(), open()] }
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let slot = usize::from(stream == Stream::Stderr);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if let Some(open) = &mut self.open[slot] {
                // Four bytes are the longest character; one more tells that something was cut.
                let room = (LINE_CHARS * 4 + 4).saturating_sub(open.len());
                open.extend_from_slice(&text[..text.len().min(room)]);
            }
            if ends {
                let line = self.open[slot].replace(Vec::new());
                self.keep(stream, line.as_deref());
            }
        }
    }

    /// A line is cut by what is missing in it.
    fn gap(&mut self, stream: Stream, bytes: u64) {
        let slot = usize::from(stream == Stream::Stderr);
        let line = self.open[slot].replace(Vec::new()).filter(|line| !line.is_empty());
        self.keep(stream, line.as_deref());
        self.keep(stream, Some(format!("[{bytes} bytes dropped]").as_bytes()));
    }

    fn keep(&mut self, stream: Stream, line: Option<&[u8]>) {
        let Some(line) = line else { return };
        let text = shortened(String::from_utf8_lossy(line).trim_end_matches('\r'), LINE_CHARS);
        self.done.push_back(Line { stream: stream.name(), text });
        if self.done.len() > LINES {
            self.done.pop_front();
        }
    }

    fn finish(mut self) -> Vec<Line> {
        for (slot, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let rest = self.open[slot].take().filter(|rest| !rest.is_empty());
            self.keep(stream, rest.as_deref());
        }
        self.done.into()
    }
}

/// A text of at most so many characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A text without anything that a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    let steers = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if steers(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{AttemptId, JobId, UnixMillis};
    use crate::logstore::{FrameRef, LogStore};

    fn lines_of(pieces: &[(Stream, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
        let attempt = AttemptId::new(JobId::new(UnixMillis::new(1)), 1);
        let mut writer = logs.create(attempt).expect("writes");
        for (n, (stream, text)) in pieces.iter().enumerate() {
            let frame = FrameRef { seq: n as u64 + 1, stream: *stream, time_us: 0, bytes: text.as_bytes(), gap: 0 };
            writer.append(&[frame]).expect("appends");
        }
        let last = writer.finish().frames;
        let mut reader = logs.reader(attempt).expect("reads");
        let lines = last_lines(&mut reader, last).expect("reads");
        lines.into_iter().map(|line| format!("{}:{}", line.stream, line.text)).collect()
    }

    #[test]
    fn lines_are_put_together_over_frames_and_kept_apart_by_stream() {
        use Stream::{Stderr, Stdout};
        let pieces = [(Stdout, "one\ntw"), (Stderr, "bad\n"), (Stdout, "o\r\nlast"), (Stderr, "")];
        assert_eq!(lines_of(&pieces), ["stdout:one", "stderr:bad", "stdout:two", "stdout:last"]);
        assert_eq!(lines_of(&[]), [""; 0]);
        assert_eq!(lines_of(&[(Stdout, "\u{1b}[2J\n")]), ["stdout:\u{1b}[2J"]);
        assert_eq!(printable("\u{1b}[2J\ta\u{202e}"), "\\u{1b}[2J\ta\\u{202e}");
    }

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        let lines: Vec<String> = (0..3000).map(|n| format!("line {n}\n")).collect();
        let pieces: Vec<_> = lines.iter().map(|line| (Stream::Stdout, line.as_str())).collect();
        let found = lines_of(&pieces);
        assert_eq!((found.len(), found[0].as_str(), found[49].as_str()), (50, "stdout:line 2950", "stdout:line 2999"));
        // A few bytes in each frame: it goes back further.
        let pieces: Vec<_> = (0..3000).map(|n| (Stream::Stdout, if n % 10 == 9 { "x\n" } else { "y" })).collect();
        let found = lines_of(&pieces);
        assert_eq!((found.len(), found[0].as_str()), (50, "stdout:yyyyyyyyyx"));
        let long = "z".repeat(60_000);
        let found = lines_of(&[(Stream::Stdout, &long), (Stream::Stdout, "\nend")]);
        assert_eq!((found[0].chars().count(), found[1].as_str()), ("stdout:".len() + 501, "stdout:end"));
    }
}

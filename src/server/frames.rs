//! Frames of a log as they are asked for: by stream and by time, from a number on; and how they are written.
//!
//! Owns what fits a question and how far one answer looks. Reads on the caller's thread, which must be a blocking one.

use super::list::moment;
use super::problem::ProblemDocument;
use crate::job::Problems;
use crate::logstore::{Frame, LogError, LogReader, Stream};
use serde::Serialize;

/// One answer looks at so much output at most; what fits may lie far apart.
const MOST_LOOKED_AT: usize = 64 << 20;
/// One answer has so many frames at most, beside those of its last block.
const MOST_FRAMES: usize = 100_000;
/// What a frame counts for at least.
const ALONE: usize = 32;
/// Read at once, so that what does not fit is not kept.
const BLOCK: usize = 1 << 20;

/// A frame in JSON.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Frame)]
pub(super) struct FrameJson {
    seq: u64,
    stream: &'static str,
    time_us: u64,
    /// The bytes, where they are UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
    /// The bytes in hex, where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hex: Option<String>,
    /// In place of bytes: so many are missing here, because nobody could take them when they were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    gap: Option<u64>,
}

impl From<&Frame> for FrameJson {
    fn from(frame: &Frame) -> Self {
        let gap = (frame.gap > 0).then_some(frame.gap);
        let text = std::str::from_utf8(&frame.bytes).ok().filter(|_| gap.is_none()).map(str::to_owned);
        let hex =
            (text.is_none() && gap.is_none()).then(|| frame.bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        Self { seq: frame.seq, stream: frame.stream.name(), time_us: frame.time_us, text, hex, gap }
    }
}

/// Which frames are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// `None`: of both streams.
    pub(super) stream: Option<Stream>,
    /// Written at this moment or later, microseconds since 1970.
    since_us: Option<u64>,
    /// Written before this moment.
    until_us: Option<u64>,
}

impl Wanted {
    /// Reads what was asked for. Errors: everything that is wrong with it.
    pub(super) fn read(
        stream: Option<&str>,
        since: Option<&str>,
        until: Option<&str>,
    ) -> Result<Self, ProblemDocument> {
        let mut problems = Problems::default();
        let stream = match stream {
            None | Some("both") => None,
            Some("stdout") => Some(Stream::Stdout),
            Some("stderr") => Some(Stream::Stderr),
            Some(_) => {
                problems.add("stream", "is none of a job", "choose among stdout, stderr, both");
                None
            }
        };
        let mut micros = |path, text: Option<&str>| {
            text.and_then(|text| moment(path, text, &mut problems)).map(|at| at.as_u64().saturating_mul(1000))
        };
        let (since_us, until_us) = (micros("since", since), micros("until", until));
        if let (Some(since), Some(until)) = (since_us, until_us)
            && since > until
        {
            problems.add("until", "is earlier than `since`", "exchange the two");
        }
        problems.or_value(Self { stream, since_us, until_us }).map_err(|problems| ProblemDocument::query(&problems))
    }

    /// Whether a time was asked for.
    pub(super) fn by_time(&self) -> bool {
        self.since_us.is_some() || self.until_us.is_some()
    }

    fn fits(&self, frame: &Frame) -> bool {
        self.stream.is_none_or(|stream| frame.stream == stream)
            && self.since_us.is_none_or(|since| frame.time_us >= since)
            && self.until_us.is_none_or(|until| frame.time_us < until)
    }
}

/// Frames that fit.
#[derive(Debug, Default)]
pub(super) struct Picked {
    pub(super) frames: Vec<Frame>,
    /// Behind the last frame that was looked at; `None` when there was none.
    pub(super) next: Option<u64>,
    /// Nothing is behind it, for now.
    pub(super) whole: bool,
}

/// The frames from number `from` on that fit, with about `most` bytes of output. Each one is looked at: a host's clock may
/// be set back while a job runs, so the place of a moment cannot be searched for. Errors: damage.
pub(super) fn pick(reader: &mut LogReader, from: u64, wanted: &Wanted, most: usize) -> Result<Picked, LogError> {
    let mut picked = Picked::default();
    let (mut kept, mut looked_at) = (0, 0);
    // A frame without output takes room in an answer too.
    while kept < most && looked_at < MOST_LOOKED_AT && picked.frames.len() < MOST_FRAMES {
        let frames = reader.read(picked.next.unwrap_or(from), BLOCK.min(most - kept))?;
        let Some(last) = frames.last() else {
            picked.whole = true;
            break;
        };
        picked.next = Some(last.seq + 1);
        looked_at += frames.iter().map(|frame| frame.bytes.len().max(ALONE)).sum::<usize>();
        for frame in frames.into_iter().filter(|frame| wanted.fits(frame)) {
            kept += frame.bytes.len();
            picked.frames.push(frame);
        }
    }
    Ok(picked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{AttemptId, JobId, UnixMillis};
    use crate::logstore::{FrameRef, LogStore};

    #[test]
    fn frames_are_picked_by_stream_and_time_and_the_place_to_go_on_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
        let attempt = AttemptId::new(JobId::new(UnixMillis::new(1)), 1);
        let mut writer = logs.create(attempt).expect("writes");
        let streams = [Stream::Stdout, Stream::Stderr];
        // The clock is set back in the middle: 1, 2, 3, 4, 5, 3, 4 … milliseconds.
        for seq in 1..=10u64 {
            let time_us = 1000 * if seq > 5 { seq - 3 } else { seq };
            let frame = FrameRef { seq, stream: streams[seq as usize % 2], time_us, bytes: b"0123456789", gap: 0 };
            writer.append(&[frame]).expect("appends");
        }
        writer.finish();
        let mut reader = logs.reader(attempt).expect("reads");
        let mut numbers = |from, stream: &str, since: Option<&str>, until: Option<&str>, most| {
            let wanted = Wanted::read(Some(stream), since, until).expect("can be read");
            let picked = pick(&mut reader, from, &wanted, most).expect("reads");
            (picked.frames.iter().map(|frame| frame.seq).collect::<Vec<_>>(), picked.next)
        };
        assert_eq!(numbers(1, "both", None, None, 30), (vec![1, 2, 3], Some(4)));
        assert_eq!(numbers(4, "stdout", None, None, 30), (vec![4, 6, 8], Some(9)));
        assert_eq!(numbers(1, "both", Some("3"), Some("5"), 1000), (vec![3, 4, 6, 7], Some(11)));
        assert_eq!(numbers(5, "stderr", Some("1970-01-01T00:00:00.003Z"), None, 1000), (vec![5, 7, 9], Some(11)));
        assert_eq!(numbers(1, "both", None, Some("0"), 1000), (vec![], Some(11)));
        assert_eq!(numbers(11, "both", None, None, 1000), (vec![], None));
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let bad = Wanted::read(Some("in"), Some("now"), Some("-1")).expect_err("wrong");
        let paths: Vec<_> = bad.problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!((bad.code, paths), ("bad_query", vec!["stream", "since", "until"]));
        let bad = Wanted::read(None, Some("2"), Some("1")).expect_err("wrong");
        assert_eq!(bad.problems[0].path, "until");
    }
}

//! What a job says of itself while it runs: how far it is, and which of its steps begins or ends. Lines in a pipe with a name, so that a
//! shell can write them with `echo`.
//!
//! ```text
//! progress 40 compiling        step begin build        step end build
//! ```
//! Owns the pipe and the last word. Bounded by itself: a newer word replaces an older one, steps have a most, and what is told of it is
//! told twice a second at most. Must never wait for the job: both ends of the pipe are ours too, so it never ends.

use crate::sys;
use crate::wire::{Advance, MOST_PROGRESS_TEXT, MOST_STEP_NAME, MOST_STEPS, StepMark};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Between two tellings.
const TELL_PAUSE_NS: u64 = 500_000_000;
/// Between two reads: who writes faster waits in its write.
const READ_PAUSE_NS: u64 = 5_000_000;
const READ_BYTES: usize = 16 * 1024;
/// A longer line is passed over.
const MOST_LINE: usize = 1024;
/// What is left in the pipe at the end; it holds no more.
const LAST_READS: usize = 8;
const O_NONBLOCK: i32 = 0o4000;
const O_NOFOLLOW: i32 = 0o400_000;
/// It has not said how far it is.
const UNKNOWN: u8 = 255;

/// Takes secrets out of what will be a text.
pub(crate) type Mask<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;

pub(crate) struct Progress {
    pipe: Option<File>,
    lines: Lines,
    read_at: u64,
    changed: bool,
    tell_at: u64,
}

impl Progress {
    /// Makes the pipe there. A folder that takes none makes no difference to the job: nobody listens then.
    pub(crate) fn new(path: &str) -> Self {
        let pipe = CString::new(path).ok().and_then(|name| {
            sys::named_pipe(&name).ok()?;
            // Both ends: it has no end of file, and nobody who opens it waits.
            let open = File::options().read(true).write(true).custom_flags(O_NONBLOCK | O_NOFOLLOW).open(path).ok();
            open.filter(|file| sys::make_ours(file.as_raw_fd()).is_ok())
        });
        Self { pipe, lines: Lines::default(), read_at: 0, changed: false, tell_at: 0 }
    }

    /// The pipe, while it is to be waited for.
    pub(crate) fn fd(&self, now: u64) -> Option<RawFd> {
        self.pipe.as_ref().filter(|_| now >= self.read_at).map(AsRawFd::as_raw_fd)
    }

    /// The next moment at which something is to be done without anybody asking. What is to be told waits until somebody listens.
    pub(crate) fn wake_at(&self, now: u64, heard: bool) -> Option<u64> {
        let read = Some(self.read_at).filter(|at| self.pipe.is_some() && now < *at);
        let tell = (self.changed && heard).then_some(self.tell_at);
        [read, tell].into_iter().flatten().min()
    }

    /// Reads what is there, once. Lines go through `mask` before anything else: nothing is cut in the middle of a secret.
    pub(crate) fn read(&mut self, now: u64, mask: Mask<'_>) {
        let Some(pipe) = self.pipe.as_ref().filter(|_| now >= self.read_at) else { return };
        let mut buffer = [0; READ_BYTES];
        if let Ok(Some(count @ 1..)) = sys::read_some(pipe.as_raw_fd(), &mut buffer) {
            self.changed |= self.lines.take(&buffer[..count], sys::unix_us(), mask);
            self.read_at = now.saturating_add(READ_PAUSE_NS);
        }
    }

    /// Whether it is to be told now, which then counts as done.
    pub(crate) fn tells_now(&mut self, now: u64) -> bool {
        let due = self.changed && now >= self.tell_at;
        if due {
            (self.changed, self.tell_at) = (false, now.saturating_add(TELL_PAUSE_NS));
        }
        due
    }

    /// Whoever listens now has heard nothing yet.
    pub(crate) fn tell_again(&mut self) {
        self.changed |= self.lines.said != Lines::default().said;
    }

    pub(crate) fn said(&self) -> &Advance {
        &self.lines.said
    }

    /// Everybody has gone: reads what is left, and gives the last word.
    pub(crate) fn finish(&mut self, mask: Mask<'_>) -> Advance {
        if let Some(pipe) = self.pipe.take() {
            let mut buffer = [0; READ_BYTES];
            for _ in 0..LAST_READS {
                match sys::read_some(pipe.as_raw_fd(), &mut buffer) {
                    Ok(Some(count @ 1..)) => drop(self.lines.take(&buffer[..count], sys::unix_us(), mask)),
                    _ => break,
                }
            }
        }
        self.changed = false;
        std::mem::take(&mut self.lines.said)
    }
}

/// Lines, and what they come to. Pure.
struct Lines {
    part: Vec<u8>,
    /// The line is too long, and its rest is passed over.
    long: bool,
    said: Advance,
}

impl Default for Lines {
    fn default() -> Self {
        Self { part: Vec::new(), long: false, said: Advance { percent: UNKNOWN, ..Advance::default() } }
    }
}

impl Lines {
    /// Says whether something has changed.
    fn take(&mut self, mut bytes: &[u8], now_us: u64, mask: Mask<'_>) -> bool {
        let mut changed = false;
        while let Some(end) = sys::find_byte(bytes, b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            let part = std::mem::take(&mut self.part);
            if std::mem::take(&mut self.long) || part.len() + line.len() > MOST_LINE {
                self.said.ignored = self.said.ignored.saturating_add(1);
                continue;
            }
            let whole = [part.as_slice(), line].concat();
            // As bytes: what is no text would look otherwise, and be no secret any more.
            match self.line(&String::from_utf8_lossy(&mask(whole)), now_us) {
                Some(()) => changed = true,
                None => self.said.ignored = self.said.ignored.saturating_add(1),
            }
        }
        if self.part.len() + bytes.len() > MOST_LINE {
            self.part.clear();
            self.long = true;
        } else if !self.long {
            self.part.extend_from_slice(bytes);
        }
        changed
    }

    fn line(&mut self, line: &str, now_us: u64) -> Option<()> {
        let (verb, rest) = line.trim().split_once(' ')?;
        match verb {
            "progress" => {
                let (percent, text) = rest.trim_start().split_once(' ').unwrap_or((rest.trim(), ""));
                let percent = percent.trim_end_matches('%').parse::<u8>().ok().filter(|percent| *percent <= 100)?;
                self.said.percent = percent;
                self.said.text = short(text.trim(), MOST_PROGRESS_TEXT);
                self.said.time_us = now_us;
            }
            "step" => {
                let (what, name) = rest.trim_start().split_once(' ')?;
                let name = short(name.trim(), MOST_STEP_NAME);
                let steps = &mut self.said.steps;
                let room = steps.len() < MOST_STEPS;
                let open = steps.iter_mut().rev().find(|step| step.name == name && step.ended_us == 0);
                match (what, open) {
                    _ if name.is_empty() => return None,
                    ("begin", _) if room => {
                        steps.push(StepMark { name, began_us: now_us, ended_us: 0 });
                    }
                    ("end", Some(step)) => step.ended_us = now_us,
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// At most so many bytes of it, in whole characters.
fn short(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Advance {
        let mut lines = Lines::default();
        // In parts of every size, which must make no difference.
        for (n, part) in text.as_bytes().chunks(7).enumerate() {
            lines.take(part, n as u64 + 1, &|text| text);
        }
        lines.said
    }

    #[test]
    fn lines_come_to_a_word_and_steps() {
        let said = said(
            "progress 10 first\nprogress 40%   compiling it all\nstep begin build\nstep begin test\nstep end build\n",
        );
        assert_eq!((said.percent, said.text.as_str(), said.ignored), (40, "compiling it all", 0));
        let steps: Vec<_> = said.steps.iter().map(|step| (step.name.as_str(), step.ended_us > 0)).collect();
        assert_eq!(steps, [("build", true), ("test", false)]);
    }

    #[test]
    fn what_is_not_understood_is_counted_and_nothing_grows() {
        let bad = said("progress 101\nprogress x\nprogress\nstep end never\nstep begin \nhello there\n\n");
        assert_eq!((bad.percent, bad.steps.len(), bad.ignored), (UNKNOWN, 0, 7));
        let long = said(&format!("progress 5 {}\nprogress 6 {}\nprogress 7\n", "x".repeat(5000), "\u{e9}".repeat(150)));
        assert_eq!((long.percent, long.ignored), (7, 1));
        let many: String = (0..500).map(|n| format!("step begin s{n}\n")).collect();
        let many = said(&many);
        assert_eq!((many.steps.len(), many.ignored), (MOST_STEPS, 500 - MOST_STEPS as u64));
        let mut lines = Lines::default();
        for _ in 0..1000 {
            lines.take(&[b'x'; 4000], 1, &|text| text);
        }
        assert!(lines.part.len() <= MOST_LINE);
        let text = short(&"\u{e9}".repeat(150), MOST_PROGRESS_TEXT);
        assert_eq!(text.len(), 200);
        assert_eq!(short("a\u{e9}", 2), "a");
    }
}

//! What the spec says of stops and stalls: the command that runs after a stop, and what becomes of output that nobody can take, or
//! that is more than the job may write.

use super::check::argv;
use crate::job::fields::{Fields, shown};
use crate::job::{Millis, Problems};
use serde::Serialize;
use serde_json::{Map, Value};

const TIMEOUTS: std::ops::RangeInclusive<Millis> = Millis::new(100)..=Millis::from_secs(600);
const DEFAULT_TIMEOUT: Millis = Millis::from_secs(10);

/// Runs in the cell after a cancel, a timeout or a silence has ended the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OnCancel {
    /// Program and arguments; no shell is involved.
    pub command: Vec<String>,
    /// It is killed when it takes longer.
    pub timeout: Millis,
}

/// What becomes of output while nobody can take it, and all buffers are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputOverflow {
    /// The job waits when it writes.
    #[default]
    Wait,
    /// It is dropped, and the log says where and how much.
    Drop,
}

impl OutputOverflow {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a job that writes more than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputExcess {
    /// It is ended.
    #[default]
    End,
    /// It runs on; what it writes beyond the limit is dropped, and the log says how much.
    Cut,
}

impl OutputExcess {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

pub(super) fn on_cancel(map: &Map<String, Value>, p: &mut Problems) -> Option<OnCancel> {
    let mut fields = Fields::new("on_cancel", map);
    let command = fields.take("command");
    let timeout = fields.parsed("timeout", "10s", p).unwrap_or(DEFAULT_TIMEOUT);
    fields.finish(p);
    if !TIMEOUTS.contains(&timeout) {
        p.add(
            "on_cancel.timeout",
            format!("{timeout} is out of range"),
            format!("choose between {} and {}", TIMEOUTS.start(), TIMEOUTS.end()),
        );
    }
    let Some(command) = command else {
        p.add("on_cancel.command", "is missing", "say what runs: `command: [program, argument]`");
        return None;
    };
    argv("on_cancel.command", command, p).map(|command| OnCancel { command, timeout })
}

pub(super) fn overflow(fields: &mut Fields<'_>, p: &mut Problems) -> OutputOverflow {
    match fields.text("output_overflow", p) {
        None | Some("wait") => OutputOverflow::Wait,
        Some("drop") => OutputOverflow::Drop,
        Some(other) => {
            let fix = "write `wait` (the job waits, nothing is lost) or `drop` (the log says what is missing)";
            p.add("output_overflow", format!("`{}` is neither wait nor drop", shown(other)), fix);
            OutputOverflow::Wait
        }
    }
}

pub(super) fn excess(fields: &mut Fields<'_>, p: &mut Problems) -> OutputExcess {
    match fields.text("output_excess", p) {
        None | Some("end") => OutputExcess::End,
        Some("cut") => OutputExcess::Cut,
        Some(other) => {
            let fix = "write `end` (the job is ended) or `cut` (it runs on, and the log says how much is missing)";
            p.add("output_excess", format!("`{}` is neither end nor cut", shown(other)), fix);
            OutputExcess::End
        }
    }
}

//! One line on the terminal while a command waits for a job: its phase, for how long, and on which agent. It goes away at
//! the end, and is never there when standard error is not a terminal or quiet was asked for.

use super::{Global, show};
use crate::job::PULL_NOTE;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;

/// Between two drawings, so that the seconds go on while nothing else does.
const TICK: Duration = Duration::from_millis(200);
/// Only blanks and words: a terminal that knows no colour shows it as well.
const TEMPLATE: &str = "{spinner} {msg}  {elapsed}";

/// A live line, or nothing.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Begins, if somebody is there to see it.
    pub(super) fn begin(global: &Global, job: &Value) -> Self {
        if global.quiet || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.tick_chars("-\\|/ "));
        }
        bar.set_message(line(job));
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }

    /// No line.
    pub(super) fn hidden() -> Self {
        Self(None)
    }

    /// A line of its own on standard error, above the live one if there is one.
    pub(super) fn say(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// True when somebody sees it.
    pub(super) fn is_live(&self) -> bool {
        self.0.is_some()
    }

    /// The job as it stands now.
    pub(super) fn show(&self, job: &Value) {
        if let Some(bar) = &self.0 {
            bar.set_message(line(job));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What is told of a job.
fn line(job: &Value) -> String {
    let said = |value: &Value| show::printable(value.as_str().unwrap_or_default());
    let mut line = format!("{} {}", said(&job["id"]), said(&job["phase"]));
    if let Some(attempt) = job["attempt"].as_u64().filter(|attempt| *attempt > 1) {
        line.push_str(&format!(", try {attempt}"));
    }
    let last = job["history"].as_array().and_then(|history| history.last());
    let pull = last.and_then(|event| event["reason"].as_str()?.strip_prefix(PULL_NOTE));
    if let Some(words) = pull.filter(|_| job["phase"] == "preparing") {
        line.push_str(&format!(", image: {}", show::printable(words)));
    }
    if !job["agent"].is_null() {
        line.push_str(&format!(" on {}", said(&job["agent"])));
    }
    if let Some(progress) = show::progress(job) {
        line.push_str(&format!(", {progress}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_says_what_is_known() {
        assert_eq!(line(&json!({"id": "a", "phase": "queued", "attempt": 0, "agent": null})), "a queued");
        let history = json!([{"reason": "image_pull: 1.0 of 2.0 MiB"}]);
        let pulls = json!({"id": "a", "phase": "preparing", "attempt": 1, "agent": "h", "history": history});
        assert_eq!(line(&pulls), "a preparing, image: 1.0 of 2.0 MiB on h");
        let lost_once = json!({"id": "a", "phase": "running", "attempt": 2, "agent": "h\u{1b}[2J"});
        assert_eq!(line(&lost_once), "a running, try 2 on h\\u{1b}[2J");
        let told = json!({"id": "a", "phase": "running", "progress": {"percent": 40, "message": "b\u{1b}", "at": 0, "eta": 5000}});
        assert_eq!(line(&told), "a running, 40 % b\\u{1b}, done at 1970-01-01T00:00:05.000Z");
    }

    #[test]
    fn the_template_can_be_read() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}

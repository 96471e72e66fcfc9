//! Colour for the words that say how something came out: on a terminal only, and never against NO_COLOR or --no-color.

use anstyle::{AnsiColor, Style};
use std::io::IsTerminal;
use std::sync::OnceLock;

static COLOUR: OnceLock<bool> = OnceLock::new();

/// True when the environment and the flag let a terminal be coloured. An empty NO_COLOR asks for nothing
/// (no-color.org); a dumb terminal shows the codes as they are.
pub(super) fn wanted(no_color: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !no_color && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Settles for the whole process whether standard output is coloured.
pub(super) fn decide(no_color: bool) {
    let _ = COLOUR.set(wanted(no_color) && std::io::stdout().is_terminal());
}

/// Whether there is colour at all.
pub(super) fn is_on() -> bool {
    COLOUR.get().copied().unwrap_or(false)
}

/// `word`, a verdict, a phase or the result of a check, in its colour if there is colour at all.
pub(super) fn state(word: &str) -> String {
    if is_on() { coloured(word) } else { word.to_owned() }
}

fn coloured(word: &str) -> String {
    let colour = match word {
        "ok" | "succeeded" => AnsiColor::Green,
        "warn" | "timed_out" | "canceled" => AnsiColor::Yellow,
        "FAIL" | "failed" | "cell_error" | "lost" => AnsiColor::Red,
        "running" => AnsiColor::Cyan,
        // Not known to be good or bad.
        _ => return word.to_owned(),
    };
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{word}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Verdict;

    #[test]
    fn every_verdict_has_a_colour_and_other_words_none() {
        use Verdict::{Canceled, CellError, Failed, Lost, Succeeded, TimedOut};
        for verdict in [Succeeded, Failed, TimedOut, Canceled, CellError, Lost] {
            let (word, shown) = (verdict.name(), coloured(verdict.name()));
            assert!(shown.starts_with("\u{1b}[3") && shown.contains(word) && shown.ends_with("\u{1b}[0m"), "{shown:?}");
        }
        assert_eq!(coloured("queued"), "queued");
        // Nothing was decided in this process.
        assert_eq!(state("failed"), "failed");
    }
}

//! What a scripted cell does; chosen by the first word of the job's command.

use crate::executor::CellOrder;
use crate::job::Program;
use std::time::Duration;

/// How the job takes being asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ears {
    /// It ends at once.
    Good,
    /// It ends some time later.
    Slow,
    /// It has to be killed.
    None,
}

/// What the job does, and how its warden misbehaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Play {
    /// Frames of output.
    pub(crate) frames: u64,
    /// Between two of them, and before the first.
    pub(crate) every: Duration,
    /// Bytes of each, at least.
    pub(crate) bytes: usize,
    /// From the last one to the end.
    pub(crate) rest: Duration,
    pub(crate) exit_code: i32,
    pub(crate) ears: Ears,
    pub(crate) trick: Option<Trick>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trick {
    /// `deaf`: the warden hears no stop.
    Deaf,
    /// `cut N`: the link breaks in the middle of each third frame.
    Cut,
    /// `garbage`: bytes that are no frames, then a proper job.
    Garbage,
    /// `weak`: refuses the receipt.
    Weak,
    /// `mute`: never says a word.
    Mute,
    /// `forge`: says that another attempt runs here.
    Forge,
}

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

impl Play {
    /// `echo N`, `sleep MS`, `job FRAMES EVERY_MS BYTES REST_MS EXIT EARS`, or the name of a trick.
    pub(crate) fn of(order: &CellOrder) -> Self {
        let mut play = Self {
            frames: 1,
            every: Duration::ZERO,
            bytes: 0,
            rest: Duration::ZERO,
            exit_code: 0,
            ears: Ears::Good,
            trick: None,
        };
        let Program::Command(argv) = order.spec.program() else { return play };
        let number = |at: usize| argv.get(at).and_then(|number| number.parse().ok()).unwrap_or(1u64);
        let silent = |rest, trick| Self { frames: 0, rest, trick, ..play.clone() };
        match argv[0].as_str() {
            "sleep" => silent(Duration::from_millis(number(1)), None),
            "deaf" => silent(FOR_EVER, Some(Trick::Deaf)),
            "cut" => Self { frames: number(1), trick: Some(Trick::Cut), ..play },
            "garbage" => Self { frames: 3, trick: Some(Trick::Garbage), ..play },
            "weak" => silent(FOR_EVER, Some(Trick::Weak)),
            "mute" => silent(FOR_EVER, Some(Trick::Mute)),
            "forge" => silent(FOR_EVER, Some(Trick::Forge)),
            "job" => {
                play.frames = number(1);
                play.every = Duration::from_millis(number(2));
                play.bytes = usize::try_from(number(3)).expect("small");
                play.rest = Duration::from_millis(number(4));
                play.exit_code = i32::try_from(number(5)).expect("small");
                play.ears = match argv.get(6).map(String::as_str) {
                    Some("slow") => Ears::Slow,
                    Some("none") => Ears::None,
                    _ => Ears::Good,
                };
                play
            }
            _ => Self { frames: number(1), ..play },
        }
    }

    /// What a frame says.
    pub(crate) fn text(&self, seq: u64) -> Vec<u8> {
        let mut text = line(seq);
        if text.len() < self.bytes {
            text.pop();
            text.resize(self.bytes - 1, b'a' + u8::try_from(seq % 26).expect("small"));
            text.push(b'\n');
        }
        text
    }

    /// Where it says it: 1 standard output, 2 standard error.
    pub(crate) fn stream(&self, seq: u64) -> u8 {
        if self.bytes > 0 && seq.is_multiple_of(3) { 2 } else { 1 }
    }
}

/// What frame `seq` of a scripted job says.
pub(crate) fn line(seq: u64) -> Vec<u8> {
    format!("line {seq}\n").into_bytes()
}

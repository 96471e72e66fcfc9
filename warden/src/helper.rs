//! The same program as a command for jobs: `"$JOBCELL_HELPER" progress 40 compiling`. It writes the lines that process 1 reads; whatever
//! it can do, a job can do without it.

use crate::wire::{OUTPUT_FILE, PROGRESS_PIPE};
use std::fs::File;
use std::io::{Read, Write};

pub(crate) const USAGE: &str = "use: progress PERCENT [MESSAGE] | step begin|end NAME | output KEY [VALUE]";
/// What a shell cannot make an end of a value by chance.
const END: &str = "JOBCELL-END-OF-VALUE";

/// Whether these arguments are for it.
pub(crate) fn is_meant(first: Option<&str>) -> bool {
    matches!(first, Some("progress" | "step" | "output"))
}

/// Does what it is told. Error: a sentence.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["progress", percent, text @ ..] => {
            let percent = percent.trim_end_matches('%');
            let known = percent.parse::<u8>().is_ok_and(|percent| percent <= 100);
            if known {
                tell(&format!("progress {percent} {}", text.join(" ")))
            } else {
                Err(format!("{percent:?} is not a number from 0 to 100; {USAGE}"))
            }
        }
        ["step", what @ ("begin" | "end"), name @ ..] if !name.is_empty() => {
            tell(&format!("step {what} {}", name.join(" ")))
        }
        ["output", key, value] => output(key, value),
        ["output", key] => {
            let mut value = String::new();
            std::io::stdin().read_to_string(&mut value).map_err(|error| format!("standard input: {error}"))?;
            output(key, value.strip_suffix('\n').unwrap_or(&value))
        }
        _ => Err(USAGE.to_owned()),
    }
}

fn place(variable: &str, usual: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| usual.to_owned())
}

fn tell(line: &str) -> Result<(), String> {
    let path = place("JOBCELL_PROGRESS", PROGRESS_PIPE);
    // One write: lines of several processes do not mix.
    let line = format!("{}\n", line.replace('\n', " "));
    let mut pipe = File::options().write(true).open(&path).map_err(|error| format!("{path}: {error}"))?;
    pipe.write_all(line.as_bytes()).map_err(|error| format!("{path}: {error}"))
}

fn output(key: &str, value: &str) -> Result<(), String> {
    if key.is_empty() || key.contains(['=', '\n', '<']) {
        return Err(format!("{key:?} is not a name for an output; use letters, digits, _, - and ."));
    }
    let path = place("JOBCELL_OUTPUT", &format!("/workspace/{OUTPUT_FILE}"));
    let text =
        if value.contains('\n') { format!("{key}<<{END}\n{value}\n{END}\n") } else { format!("{key}={value}\n") };
    let file = File::options().append(true).create(true).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| format!("{path}: {error}"))
}

//! The same program as a command for jobs: `"$JOBCELL_HELPER" progress 40 compiling`. It writes the lines that process 1 reads; whatever
//! it can do, a job can do without it. What nobody would take is refused here, where somebody is told.

use crate::wire::{MOST_OUTPUTS, OUTPUT_FILE, PROGRESS_PIPE};
use std::fs::File;
use std::io::{Read, Write};

const USAGE: &str = "use: progress PERCENT [MESSAGE] | step begin|end NAME | output KEY [VALUE]";
const HELP: &str = "\
Tells jobcell how a job is getting on, and gives it values.

  progress PERCENT [MESSAGE]   how far the job is: 0 to 100
  step begin NAME              a part of the job begins
  step end NAME                and ends
  output KEY VALUE             a value of the job's result; letters, digits, _ - . in KEY
  output KEY                   the same, with the value from standard input

Exits with 0, or with 2 and a sentence when it was not done.
";
/// What a shell cannot make an end of a value by chance.
const END: &str = "JOBCELL-END-OF-VALUE";
/// As the agent reads names of outputs.
const MOST_KEY: usize = 128;

/// Whether these arguments are for it: all but those of a warden.
pub(crate) fn is_meant(first: Option<&str>) -> bool {
    !first.is_some_and(crate::is_own)
}

/// Does what it is told; says what is to be printed. Error: a sentence.
pub(crate) fn run(args: &[String]) -> Result<&'static str, String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h" | "help"] | [_, "--help" | "-h"] => return Ok(HELP),
        ["progress", percent, text @ ..] => {
            let percent = percent.trim_end_matches('%');
            let known = percent.parse::<u8>().is_ok_and(|percent| percent <= 100);
            if !known {
                return Err(format!("{percent:?} is not a number from 0 to 100; {USAGE}"));
            }
            tell(&format!("progress {percent} {}", text.join(" ")))
        }
        ["step", what @ ("begin" | "end"), name @ ..] if name.iter().any(|word| !word.trim().is_empty()) => {
            tell(&format!("step {what} {}", name.join(" ")))
        }
        ["output", key, value] => output(key, value),
        ["output", key] => {
            check_key(key)?;
            let mut value = String::new();
            let most = MOST_OUTPUTS as u64 + 2;
            let read = std::io::stdin().take(most).read_to_string(&mut value);
            read.map_err(|error| format!("standard input: {error}"))?;
            output(key, value.strip_suffix('\n').unwrap_or(&value))
        }
        [] => Err(USAGE.to_owned()),
        ["progress" | "step" | "output", ..] => {
            Err(format!("{:?} is not complete, or too much; {USAGE}", words.join(" ")))
        }
        [other, ..] => Err(format!("{other:?} is nothing that it can do; {USAGE}")),
    }?;
    Ok("")
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

fn check_key(key: &str) -> Result<(), String> {
    let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if key.is_empty() || key.len() > MOST_KEY || !key.bytes().all(grammar) {
        return Err(format!("{key:?} is not a name for an output; use up to {MOST_KEY} letters, digits, _, - and ."));
    }
    Ok(())
}

/// The lines that say so. Error: a sentence.
fn lines(key: &str, value: &str) -> Result<String, String> {
    check_key(key)?;
    if value.contains('\0') {
        return Err(format!("the value of {key:?} has a NUL byte"));
    }
    if !value.contains(['\n', '\r']) {
        return Ok(format!("{key}={value}\n"));
    }
    let mut end = END.to_owned();
    while value.lines().any(|line| line == end) {
        end.push('-');
    }
    Ok(format!("{key}<<{end}\n{value}\n{end}\n"))
}

fn output(key: &str, value: &str) -> Result<(), String> {
    let text = lines(key, value)?;
    let path = place("JOBCELL_OUTPUT", &format!("/workspace/{OUTPUT_FILE}"));
    let failed = |error: std::io::Error| format!("{path}: {error}");
    let mut file = File::options().append(true).create(true).open(&path).map_err(failed)?;
    let there = file.metadata().map_err(failed)?.len();
    if there.saturating_add(text.len() as u64) > MOST_OUTPUTS as u64 {
        return Err(format!("{key:?} has no room: all outputs together have {MOST_OUTPUTS} bytes at most, with names"));
    }
    file.write_all(text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(args: &[&str]) -> Result<&'static str, String> {
        run(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn help_and_mistakes_are_its_own() {
        for args in [&["--help"][..], &["-h"], &["help"], &["output", "--help"]] {
            assert_eq!(said(args), Ok(HELP), "{args:?}");
        }
        let most = "k".repeat(MOST_KEY + 1);
        let bad = [
            &[][..],
            &["progres", "40"],
            &["progress"],
            &["progress", "101"],
            &["step", "start", "x"],
            &["step", "begin", " "],
        ];
        for args in bad {
            assert!(said(args).is_err_and(|why| why.contains("use: progress")), "{args:?}");
        }
        for args in [["output", "k k", "v"], ["output", "", "v"], ["output", &most, "v"], ["output", "k=", "v"]] {
            assert!(said(&args).is_err_and(|why| why.contains("is not a name for an output")), "{args:?}");
        }
        assert!(is_meant(None) && is_meant(Some("--help")) && !is_meant(Some("--owner")));
    }

    #[test]
    fn a_value_stays_what_it_is() {
        assert_eq!(lines("a.b", "x = y"), Ok("a.b=x = y\n".to_owned()));
        assert_eq!(lines("a", "1\n2"), Ok(format!("a<<{END}\n1\n2\n{END}\n")));
        assert_eq!(lines("a", &format!("{END}\n2")), Ok(format!("a<<{END}-\n{END}\n2\n{END}-\n")));
        assert!(lines("a", "\0").is_err());
    }
}

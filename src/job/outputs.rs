//! The file in which a job names values: `KEY=value`, or over several lines `KEY<<END`, the lines, `END`. Pure.
//!
//! A value that no line ends takes the rest of the file with it: what was meant by the lines behind it cannot be known. What came before
//! is kept, and what is lost is told.

use super::shown;
use std::collections::BTreeMap;

/// Values of one job.
const MOST_KEYS: usize = 256;
const MOST_KEY: usize = 128;
/// Problems that are told.
const MOST_PROBLEMS: usize = 8;

/// Reads what there is of the file; `length` is how long it is as a whole. What is wrong is told by its line, and the rest is taken.
pub fn read_outputs(bytes: &[u8], length: u64) -> (BTreeMap<String, String>, Vec<String>) {
    let mut read = Read::default();
    let mut bytes = bytes;
    if length > bytes.len() as u64 {
        // The last line may be cut, so it is not taken for one.
        bytes = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[], |end| &bytes[..=end]);
        read.problem(format!("the file has {length} bytes; what is beyond its first {} is not read", bytes.len()));
    }
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).enumerate();
    while let Some((at, line)) = lines.next() {
        let number = at + 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Ok(line) = std::str::from_utf8(line) else {
            read.problem(format!("line {number} is not UTF-8"));
            continue;
        };
        let heredoc = line.find("<<").filter(|at| line.find('=').is_none_or(|equals| *at < equals));
        match (heredoc, line.split_once('=')) {
            (Some(at), _) => {
                let (key, end) = (line[..at].trim(), line[at + 2..].trim());
                if end.is_empty() {
                    read.problem(format!(
                        "line {number}: nothing behind `<<` says which line ends the value of `{}`",
                        shown(key)
                    ));
                    continue;
                }
                let mut value = Vec::new();
                let (mut ended, mut last) = (false, number);
                for (at, line) in lines.by_ref() {
                    if line == end.as_bytes() {
                        ended = true;
                        break;
                    }
                    if !line.trim_ascii().is_empty() {
                        last = at + 1;
                    }
                    value.push(line);
                }
                if !ended {
                    read.unended(number, last, key, end);
                    continue;
                }
                match String::from_utf8(value.join(&b'\n')) {
                    Ok(value) => read.take(number, key, value),
                    Err(_) => read.problem(format!("line {number}: the value is not UTF-8")),
                }
            }
            (None, Some((key, value))) => read.take(number, key.trim(), value.to_owned()),
            (None, None) => read.problem(format!("line {number} has no `=`: `{}`", shown(line))),
        }
    }
    read.over()
}

#[derive(Default)]
struct Read {
    values: BTreeMap<String, String>,
    problems: Vec<String>,
    /// Problems that there is no room for.
    more: usize,
    /// What is lost with a value that nothing ends; there is one at most.
    lost: Option<String>,
}

impl Read {
    fn problem(&mut self, text: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(text);
        } else {
            self.more += 1;
        }
    }

    /// A value that begins in line `number` is ended by none, and the last line with something in it is `last`.
    fn unended(&mut self, number: usize, last: usize, key: &str, end: &str) {
        let (key, end) = (shown(key), shown(end));
        let lost = match last {
            last if last <= number => "it is not taken".to_owned(),
            last if last == number + 1 => format!("it is not taken, nor is line {last}"),
            last => format!("it is not taken, nor is anything in lines {} to {last}", number + 1),
        };
        self.lost = Some(format!("line {number}: no line `{end}` ends the value of `{key}`; {lost}"));
    }

    fn over(mut self) -> (BTreeMap<String, String>, Vec<String>) {
        let room = MOST_PROBLEMS - usize::from(self.lost.is_some());
        let all = self.problems.len() + self.more;
        if all > room {
            self.problems.truncate(room - 1);
            self.problems.push(format!("and {} more problems", all + 1 - room));
        }
        self.problems.extend(self.lost);
        (self.values, self.problems)
    }

    fn take(&mut self, number: usize, key: &str, value: String) {
        let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if key.is_empty() || key.len() > MOST_KEY || !key.bytes().all(grammar) {
            let fix = format!("use up to {MOST_KEY} letters, digits and _ - .");
            return self.problem(format!("line {number}: `{}` is not a name for an output; {fix}", shown(key)));
        }
        if value.contains('\0') {
            return self.problem(format!("line {number}: the value of `{key}` has a NUL byte"));
        }
        if self.values.len() >= MOST_KEYS && !self.values.contains_key(key) {
            return self.problem(format!("line {number}: there are more than {MOST_KEYS} outputs"));
        }
        self.values.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Vec<(String, String)>, Vec<String>) {
        let (values, problems) = read_outputs(text.as_bytes(), text.len() as u64);
        (values.into_iter().collect(), problems)
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn values_are_taken_in_both_forms_and_the_last_one_counts() {
        let (values, problems) = read("a=1\nb = x=y \n\nnotes<<END\nline 1\n\nEND2\nEND\na=2\r\nempty=");
        assert_eq!(values, [pair("a", "2"), pair("b", " x=y "), pair("empty", ""), pair("notes", "line 1\n\nEND2")]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(read("url=http://x/?a<<b").0, [pair("url", "http://x/?a<<b")]);
    }

    #[test]
    fn bad_lines_are_named_and_the_rest_is_taken() {
        let (values, problems) = read("no equals\n=x\na b=1\nok=1\nopen<<END\nnever");
        assert_eq!(values, [pair("ok", "1")]);
        for (problem, wanted) in
            problems.iter().zip(["line 1 has no `=`", "line 2:", "line 3: `a b`", "line 5: no line `END`"])
        {
            assert!(problem.starts_with(wanted), "{problem}");
        }
        assert_eq!(problems.len(), 4);
        assert_eq!(problems[3], "line 5: no line `END` ends the value of `open`; it is not taken, nor is line 6");
        let (values, problems) = read_outputs(b"a=1\nb=2", 100);
        assert_eq!((values.len(), problems.len()), (1, 1), "a line that is cut is none");
        assert_eq!(read_outputs(b"a=\xff\nb=1", 7).1, ["line 1 is not UTF-8"]);
        let many: String = (0..1000).map(|n| format!("k{n}=1\n")).collect();
        assert_eq!((read(&many).0.len(), read(&many).1.len()), (MOST_KEYS, MOST_PROBLEMS));
    }

    #[test]
    fn a_value_that_nothing_ends_says_what_is_lost_with_it() {
        let (values, problems) = read("a=1\nnotes<<END\nx\nb=2\nc=3\n\n");
        assert_eq!(values, [pair("a", "1")]);
        let lost = "it is not taken, nor is anything in lines 3 to 5";
        assert_eq!(problems, [format!("line 2: no line `END` ends the value of `notes`; {lost}")]);
        assert_eq!(read("notes<<END\n").1, ["line 1: no line `END` ends the value of `notes`; it is not taken"]);
        // However much else is wrong.
        let (_, problems) = read(&format!("{}notes<<END\nb=2", "?\n".repeat(20)));
        assert_eq!((problems.len(), problems[6].as_str()), (MOST_PROBLEMS, "and 14 more problems"), "{problems:?}");
        assert!(problems[7].starts_with("line 21: no line `END`"), "{problems:?}");
        // What names no end takes nothing with it.
        let (values, problems) = read("notes<<\nb=2\n\nc=3");
        assert_eq!((values, problems.len()), (vec![pair("b", "2"), pair("c", "3")], 1));
    }

    proptest! {
        #[test]
        fn nothing_that_a_job_writes_is_more_than_it_may_be(bytes in prop::collection::vec(any::<u8>(), 0..2000), length in 0u64..4000) {
            let (values, problems) = read_outputs(&bytes, length);
            prop_assert!(values.len() <= MOST_KEYS && problems.len() <= MOST_PROBLEMS);
            let total: usize = values.iter().map(|(key, value)| key.len() + value.len()).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}

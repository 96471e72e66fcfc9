//! Looks through the files. A line that cannot be read is passed over and counted: one that was cut by a crash must not hide the others.

use crate::job::UnixMillis;
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::PathBuf;

/// Bytes of a line that is looked at; a longer one is none of ours.
const LONGEST_LINE: u64 = 64 << 10;

/// Which lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// At that moment or later.
    pub since: Option<UnixMillis>,
    /// Before that moment.
    pub until: Option<UnixMillis>,
    /// By the key or agent of this name.
    pub who: Option<String>,
    /// Of this action, or of those that begin with it and a dot.
    pub action: Option<String>,
    /// About this id or name.
    pub object: Option<String>,
    /// With this outcome.
    pub outcome: Option<String>,
    /// With a lower number.
    pub before: Option<u64>,
    /// So many at most.
    pub limit: usize,
}

/// What was found, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The lines.
    pub entries: Vec<Value>,
    /// There are more, before the last one.
    pub more: bool,
    /// Lines that could not be read, in the files that were looked through.
    pub unreadable: u64,
}

/// The number of a line.
pub(super) fn seq(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(line).ok()?["seq"].as_u64()
}

impl Filter {
    fn takes(&self, line: &Value) -> bool {
        let at = line["at"].as_u64().map(UnixMillis::new);
        let is = |field: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| line[field].as_str() == Some(wanted))
        };
        let of = |wanted: &String| {
            let rest = line["action"].as_str().and_then(|action| action.strip_prefix(wanted.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.since.is_none_or(|since| at >= Some(since))
            && self.until.is_none_or(|until| at < Some(until))
            && self.before.is_none_or(|before| line["seq"].as_u64().is_some_and(|seq| seq < before))
            && is("who", &self.who)
            && is("object", &self.object)
            && is("outcome", &self.outcome)
            && self.action.as_ref().is_none_or(of)
    }
}

/// Reads files, the newest first. Errors: one that is there cannot be read.
pub(super) fn read(files: &[PathBuf], filter: &Filter) -> std::io::Result<Page> {
    let mut page = Page { entries: Vec::new(), more: false, unreadable: 0 };
    // A file that gets another name while this reads is met twice; what it has was taken already.
    let mut lowest = u64::MAX;
    for path in files {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            continue;
        }
        let (mut file, mut line) = (BufReader::new(file), Vec::new());
        let mut found: VecDeque<Value> = VecDeque::new();
        let mut first = lowest;
        while next(&mut file, &mut line)? {
            let entry = match serde_json::from_slice::<Value>(&line) {
                Ok(entry) if entry["seq"].is_u64() => entry,
                Ok(_) | Err(_) => {
                    page.unreadable += u64::from(!line.trim_ascii().is_empty());
                    continue;
                }
            };
            let seq = entry["seq"].as_u64().unwrap_or_default();
            first = first.min(seq);
            if seq < lowest && filter.takes(&entry) {
                found.push_back(entry);
                if found.len() > filter.limit + 1 {
                    found.pop_front();
                }
            }
        }
        lowest = first;
        page.entries.extend(found.into_iter().rev());
        if page.entries.len() > filter.limit {
            page.more = true;
            page.entries.truncate(filter.limit);
            break;
        }
    }
    Ok(page)
}

/// The next line, without its end; of a longer one than there are, a part that is no line of ours. False at the end.
fn next(file: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let read = file.by_ref().take(LONGEST_LINE).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 == LONGEST_LINE {
        file.skip_until(b'\n')?;
    }
    Ok(read > 0)
}

//! `jobcell explain CODE`: what a code means and what to do, from the catalogue that docs/errors.md is. Works without a server.

use super::exit::EXIT_CODES;
use super::{Failure, Global, show};
use serde_json::json;
use unicode_width::UnicodeWidthStr;

/// The catalogue. Its tests hold it against the codes that there are.
const CATALOGUE: &str = include_str!("../../docs/errors.md");
/// As wide as most terminals.
const WIDTH: usize = 100;
/// In front of codes in problem documents.
const URN: &str = "urn:jobcell:error:";

/// What the catalogue says of one code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    code: &'static str,
    /// What kind of code it is: the heading that it stands under.
    kind: &'static str,
    /// Paragraphs, as they stand there.
    text: Vec<String>,
}

impl Entry {
    /// Whether it names this code without being about nothing else, as the reasons of a refusal.
    fn names(&self, code: &str) -> bool {
        let name = format!("`{code}`");
        self.text.iter().any(|paragraph| paragraph.contains(&name))
    }

    /// Its first sentence that says something of it, and not of answers and verdicts.
    fn gist(&self) -> String {
        let text = self.text.first().map(String::as_str).unwrap_or_default();
        let mut sentences = text.split_inclusive(". ").map(str::trim);
        let about = |sentence: &&str| !sentence.starts_with("Verdict") && !sentence.starts_with("Exit code");
        let gist = sentences.find(about).unwrap_or(text);
        let gist = gist.strip_prefix("HTTP ").and_then(|rest| rest.split_once(": ")).map_or(gist, |(_, rest)| rest);
        gist.trim_end_matches('.').to_owned()
    }
}

pub(super) fn run(code: Option<&str>, global: &Global) -> Result<u8, Failure> {
    let all = entries();
    let Some(asked) = code else {
        let document: Vec<_> =
            all.iter().map(|entry| json!({"code": entry.code, "kind": entry.kind, "text": entry.gist()})).collect();
        let rows =
            || all.iter().map(|entry| vec![entry.code.to_owned(), entry.kind.to_owned(), entry.gist()]).collect();
        global.output.print(&document.into(), || show::table(&["CODE", "KIND", "MEANS"], rows()))?;
        return Ok(0);
    };
    let found = find(&all, asked).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|entry| entry.code).collect();
        let near = crate::job::suggestion(asked, &names);
        let near = if near.starts_with("did") { near } else { "`jobcell explain` lists all that there are".to_owned() };
        Failure::usage(format!("`{}` is no code; {near}", show::printable(asked)))
    })?;
    let document: Vec<_> =
        found.iter().map(|entry| json!({"code": entry.code, "kind": entry.kind, "text": entry.text})).collect();
    global.output.print(&document.into(), || found.iter().map(people).collect::<Vec<_>>().join("\n\n"))?;
    Ok(0)
}

/// The entries of a code, or those that name it; of a number, what this program means when it exits with it.
fn find(all: &[Entry], asked: &str) -> Option<Vec<Entry>> {
    let code = asked.strip_prefix(URN).unwrap_or(asked);
    let of: Vec<Entry> = all.iter().filter(|entry| entry.code == code).cloned().collect();
    if !of.is_empty() {
        return Some(of);
    }
    if let Ok(number) = code.parse::<u8>() {
        return Some(vec![Entry { code: "exit code", kind: "of this program", text: vec![exit_code(number)] }]);
    }
    let whole = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let naming: Vec<Entry> = all.iter().filter(|entry| whole && entry.names(code)).cloned().collect();
    (!naming.is_empty()).then_some(naming)
}

fn exit_code(number: u8) -> String {
    let own = |code: &&(&str, &str)| code.0.split(", ").any(|one| one == number.to_string());
    match EXIT_CODES.iter().find(own) {
        Some((_, means)) => format!("{number}: {means}"),
        None if number > 128 => {
            let row = EXIT_CODES.iter().find(|(code, _)| *code == "128+n").map_or("", |(_, means)| means);
            format!("{number} is 128+{}: {row}. Or the job exited with it", number - 128)
        }
        None => format!("{number}: the job exited with it"),
    }
}

fn people(entry: &Entry) -> String {
    let mut lines = vec![format!("{} ({})", entry.code, entry.kind)];
    for paragraph in &entry.text {
        lines.push(String::new());
        lines.extend(wrapped(&without_links(paragraph)));
    }
    lines.join("\n")
}

fn entries() -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let (mut kind, mut ended) = ("", true);
    for line in CATALOGUE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            kind = match heading {
                "API errors" => "API error",
                "Causes of an end" => "cause of an end",
                other => other,
            };
            ended = true;
        } else if let Some(code) = line.strip_prefix("### ") {
            found.push(Entry { code, kind, text: Vec::new() });
            ended = false;
        } else if let Some(entry) = found.last_mut().filter(|_| !ended) {
            match (line.trim(), entry.text.last_mut()) {
                ("", _) => entry.text.push(String::new()),
                (text, Some(last)) if !last.is_empty() => *last = format!("{last} {text}"),
                (text, Some(last)) => text.clone_into(last),
                (text, None) => entry.text.push(text.to_owned()),
            }
        }
    }
    for entry in &mut found {
        entry.text.retain(|paragraph| !paragraph.is_empty());
    }
    found
}

/// `[what](where)` as `what (docs/where)`: who reads this has no page to click on.
fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let link = after.split_once("](").and_then(|(name, tail)| {
            let (place, tail) = tail.split_once(')')?;
            (!name.contains(['[', ']'])).then_some((name, place, tail))
        });
        match link {
            Some((name, place, tail)) => {
                out.push_str(before);
                out.push_str(name);
                let place = place.split('#').next().unwrap_or_default();
                if !place.is_empty() && place != name {
                    out.push_str(&format!(" (docs/{place})"));
                }
                rest = tail;
            }
            None => {
                out.push_str(before);
                out.push('[');
                rest = after;
            }
        }
    }
    out + rest
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_says_something() {
        let all = entries();
        assert!(all.len() > 60, "{}", all.len());
        for entry in &all {
            assert!(!entry.text.is_empty() && entry.gist().len() > 10, "{entry:?}");
            assert!(["API error", "cause of an end"].contains(&entry.kind), "{entry:?}");
            assert!(people(entry).lines().all(|line| line.width() <= WIDTH || !line.contains(' ')), "{entry:?}");
        }
    }

    #[test]
    fn a_code_is_found_by_its_name_by_its_urn_and_by_who_names_it() {
        let all = entries();
        let codes = |asked: &str| {
            find(&all, asked).map(|found| found.iter().map(|entry| (entry.code, entry.kind)).collect::<Vec<_>>())
        };
        assert_eq!(codes("queue_full"), Some(vec![("queue_full", "API error")]));
        assert_eq!(codes("urn:jobcell:error:queue_full"), codes("queue_full"));
        let both = vec![("policy_refused", "API error"), ("policy_refused", "cause of an end")];
        assert_eq!(codes("policy_refused"), Some(both));
        assert_eq!(codes("image_not_allowed"), Some(vec![("policy_refused", "cause of an end")]));
        for none in ["", "no_such_code", "`", "QUEUE_FULL"] {
            assert_eq!(codes(none), None, "{none:?}");
        }
    }

    #[test]
    fn numbers_are_exit_codes() {
        for (number, wanted) in
            [("125", "failed the job"), ("127", "was not found"), ("139", "128+11: signal n"), ("7", "exited")]
        {
            let found = find(&[], number).expect("is known");
            assert!(found[0].text[0].contains(wanted), "{number}: {found:?}");
        }
    }

    #[test]
    fn links_are_told_in_words() {
        assert_eq!(without_links("see [policy.md](policy.md) on it"), "see policy.md on it");
        assert_eq!(without_links("[tries](job-spec.md#tries), [3].timeout"), "tries (docs/job-spec.md), [3].timeout");
        assert_eq!(without_links("[Below](#causes) is more [a](b"), "Below is more [a](b");
    }
}

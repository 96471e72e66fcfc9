//! The documents as they are read: each page is in the navigation of the site, and the command lines in them are ones that the program
//! understands.

use super::stage::root;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::collections::BTreeSet;
use std::path::Path;

/// Pages that the site makes: of files outside docs/, and of the API's description (scripts/site/hooks.py).
const MADE: [&str; 6] = [
    "project/readme.md",
    "project/changes.md",
    "project/security.md",
    "project/deploy.md",
    "project/seccomp.md",
    "reference/api.md",
];

fn pages(dir: &Path, under: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = format!("{under}{}", path.file_name().expect("a name").to_string_lossy());
        if path.is_dir() {
            pages(&path, &format!("{name}/"), found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.insert(name);
        }
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("reads")
}

#[test]
fn every_page_is_in_the_navigation_once() {
    let site = text("mkdocs.yml");
    let (_, nav) = site.split_once("\nnav:\n").expect("the navigation");
    let named: Vec<&str> =
        nav.lines().filter_map(|line| line.rsplit(' ').next()).filter(|word| word.ends_with(".md")).collect();
    let once: BTreeSet<String> = named.iter().map(|page| (*page).to_owned()).collect();
    assert_eq!(named.len(), once.len(), "a page is there twice");
    let mut wanted = BTreeSet::new();
    pages(&root().join("docs"), "", &mut wanted);
    wanted.extend(MADE.map(str::to_owned));
    assert_eq!(once, wanted);
    let decisions = text("docs/decisions/README.md");
    for page in wanted.iter().filter_map(|page| page.strip_prefix("decisions/0")) {
        assert!(decisions.contains(&format!("(0{page})")), "docs/decisions/README.md does not have 0{page}");
    }
    let hooks = text("scripts/site/hooks.py");
    for page in MADE {
        assert!(hooks.contains(page), "{page} is made by nobody");
    }
}

#[test]
fn command_lines_in_the_documents_are_understood() {
    let mut all = BTreeSet::new();
    pages(&root().join("docs"), "docs/", &mut all);
    all.extend(["README.md", "deploy/README.md"].map(str::to_owned));
    let mut wrong = Vec::new();
    let (mut whole, mut named) = (0, 0);
    for page in &all {
        let text = text(page);
        for line in shell(&text) {
            for words in commands(&line).iter().filter_map(|words| ours(words)) {
                whole += 1;
                if let Some(why) = complaint(&words, false) {
                    wrong.push(format!("{page}: {}\n    {why}", words.join(" ")));
                }
            }
        }
        for words in mentions(&text) {
            named += 1;
            if let Some(why) = complaint(&words, true) {
                wrong.push(format!("{page}: `{}`\n    {why}", words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), whole + named, wrong.join("\n"));
    assert!(whole > 40 && named > 100, "only {whole} command lines and {named} mentions were found");
}

#[test]
fn a_command_line_that_is_none_is_found() {
    let page = "```sh\nA=1 sudo jobcell job submit \"a b.yaml\" --followw | cat   # a remark\njobcell queue\n```\n\nAs `jobcell nothing` says.\n";
    let lines: Vec<Vec<String>> =
        shell(page).iter().flat_map(|line| commands(line)).filter_map(|words| ours(&words)).collect();
    assert_eq!(lines, [vec!["jobcell", "job", "submit", "a b.yaml", "--followw"], vec!["jobcell", "queue"]]);
    assert!(complaint(&lines[0], false).is_some_and(|why| why.contains("--followw")));
    assert!(complaint(&lines[1], false).is_none());
    assert!(mentions(page).iter().any(|words| complaint(words, true).is_some()));
    // A placeholder may stand where a value has a form of its own; a flag is no placeholder.
    let of = |line: &str| commands(line).remove(0);
    assert!(complaint(&of("jobcell job list --limit N"), false).is_none());
    assert!(complaint(&of("jobcell job list --limit many"), false).is_some());
    assert!(complaint(&of("jobcell job list --LIMIT N"), false).is_some());
}

/// Lines for a shell: of blocks marked `sh`, and of blocks that are indented. Lines that end with `\` are one; what stands in a here
/// document is none.
fn shell(page: &str) -> Vec<String> {
    let (mut found, mut fence, mut until) = (Vec::<String>::new(), None, None::<String>);
    let mut open = false;
    for line in page.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(kind.trim().to_owned()) };
            continue;
        }
        let here = match fence.as_deref() {
            Some(kind) => kind == "sh",
            None => line.starts_with("    "),
        };
        if !here {
            continue;
        }
        if let Some(end) = &until {
            if line.trim() == end {
                until = None;
            }
            continue;
        }
        if let Some((_, end)) = line.split_once("<<") {
            let end: String =
                end.trim_matches(['-', '\'', '"', ' ']).chars().take_while(char::is_ascii_alphabetic).collect();
            until = Some(end).filter(|end| !end.is_empty());
        }
        let (part, more) = line.trim_end().strip_suffix('\\').map_or((line, false), |part| (part, true));
        if open {
            found.last_mut().expect("the line before").push_str(part);
        } else {
            found.push(part.to_owned());
        }
        open = more;
    }
    found
}

/// The simple commands of a line, each as its words: quotes are taken away, redirections and remarks left out.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut found, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let (mut quote, mut depth, mut skip) = (None, 0_usize, false);
    let mut chars = line.chars().peekable();
    let end = |words: &mut Vec<String>, word: &mut Option<String>, skip: &mut bool| {
        if let Some(word) = word.take() {
            if *skip { *skip = false } else { words.push(word) }
        }
    };
    while let Some(one) = chars.next() {
        match one {
            _ if quote == Some(one) => quote = None,
            _ if quote.is_some() => word.get_or_insert_default().push(one),
            '(' if depth > 0 || word.as_ref().is_some_and(|word| word.ends_with('$')) => {
                depth += 1;
                word.get_or_insert_default().push(one);
            }
            ')' if depth > 0 => {
                depth -= 1;
                word.get_or_insert_default().push(one);
            }
            _ if depth > 0 => word.get_or_insert_default().push(one),
            '\'' | '"' => {
                quote = Some(one);
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '#' if word.is_none() => break,
            '>' | '<' => {
                // The number before it is a descriptor's.
                word.take_if(|word| word.chars().all(|digit| digit.is_ascii_digit()));
                end(&mut words, &mut word, &mut skip);
                while chars.next_if(|next| matches!(next, '>' | '<' | '&' | '-')).is_some() {}
                skip = true;
            }
            ';' | '|' | '&' => {
                end(&mut words, &mut word, &mut skip);
                found.push(std::mem::take(&mut words));
            }
            _ if one.is_whitespace() => end(&mut words, &mut word, &mut skip),
            _ => word.get_or_insert_default().push(one),
        }
    }
    end(&mut words, &mut word, &mut skip);
    found.push(words);
    found.retain(|words| !words.is_empty());
    found
}

/// The command line of this program in a simple command: at its head, behind variables, or behind programs that start others (there not
/// behind an option, whose value it is). The image's name stands for the program, too.
fn ours(words: &[String]) -> Option<Vec<String>> {
    let is = |word: &str| word == "jobcell" || word == "jobcell/agent";
    let first = words.iter().position(|word| !variable(word))?;
    let at = if is(&words[first]) || words[first].ends_with("/jobcell") {
        first
    } else if ["sudo", "runuser", "docker", "docker-compose", "time", "timeout"].contains(&words[first].as_str()) {
        (first + 1..words.len()).rfind(|at| {
            let before = &words[at - 1];
            is(&words[*at]) && (before == "--" || !before.starts_with('-'))
        })?
    } else {
        return None;
    };
    let mut line = vec!["jobcell".to_owned()];
    line.extend(words[at + 1..].iter().filter(|word| *word != "…").cloned());
    Some(line).filter(|line| line.len() > 1)
}

fn variable(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|one| one.is_ascii_uppercase() || one.is_ascii_digit() || one == '_')
    })
}

/// Command lines within the text, between backticks: `jobcell job list [--state STATE]`, and at the heads of lines of blocks that are marked
/// as nothing, behind a prompt (`host$`) or without one, up to two spaces. What may be left out is there; of several words with `|` between
/// them the first one is taken.
fn mentions(page: &str) -> Vec<Vec<String>> {
    let (mut fence, mut found) = (None, Vec::new());
    for line in page.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(kind.trim()) };
            continue;
        }
        match fence {
            Some("") => {
                let line = line.trim_start();
                let line =
                    line.split_once("$ ").filter(|(prompt, _)| !prompt.contains(' ')).map_or(line, |(_, line)| line);
                found.extend(line.trim_start().split("  ").next());
            }
            Some(_) => {}
            None if line.starts_with("    ") => {}
            None => found.extend(line.split('`').skip(1).step_by(2)),
        }
    }
    let words = |code: &str| {
        let plain = code.replace(['[', ']'], "");
        let first = |word: &str| word.split('|').next().unwrap_or_default().to_owned();
        ours(&plain.split_whitespace().map(first).collect::<Vec<_>>())
    };
    found.into_iter().filter_map(words).collect()
}

/// What the program says to a command line that it does not understand. A placeholder (capitals, or with `…`) may stand for any value.
/// What is only mentioned need not be whole.
fn complaint(words: &[String], mentioned: bool) -> Option<String> {
    let error = jobcell::cli::reads(words).err()?;
    let placeholder = |value: &str| {
        value.contains('…') || value.chars().all(|one| one.is_ascii_uppercase() || matches!(one, '_' | '-' | '='))
    };
    let excused = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => match error.get(ContextKind::InvalidValue) {
            Some(ContextValue::String(value)) => placeholder(value),
            _ => false,
        },
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => false,
        _ => mentioned,
    };
    (!excused).then(|| error.to_string().lines().next().unwrap_or_default().to_owned())
}

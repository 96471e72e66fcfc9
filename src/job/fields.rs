//! Walks a document field by field and collects ALL problems, each with path, reason and fix. Used where a person
//! wrote the document: derive-made deserializers stop at the first problem and name it badly.

use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where: `resources.memory`, `command[2]`; empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.path.is_empty() { "(document)" } else { &self.path };
        write!(f, "{at}: {}; {}", self.reason, self.fix)
    }
}

/// Everything that is wrong with a document; never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Problems are listed up to this number: a hostile document cannot make a huge answer.
    const MOST: usize = 50;

    /// Adds one.
    pub fn add(&mut self, path: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) {
        if self.0.len() < Self::MOST {
            self.0.push(Problem { path: path.into(), reason: reason.into(), fix: fix.into() });
        }
    }

    /// A single problem as a list.
    pub fn one(path: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        let mut all = Self::default();
        all.add(path, reason, fix);
        all
    }

    /// The problems in the order found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// True when nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok(value)` when nothing is wrong, else all problems.
    pub fn or_value<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Shows a value from outside in a message: short, one line, escaped.
pub(crate) fn shown(text: &str) -> String {
    let cut = text.chars().take(60).fold(String::new(), |mut cut, c| {
        // Quotes are harmless, and a person reads them more easily as they are.
        if matches!(c, '\'' | '"') {
            cut.push(c)
        } else {
            cut.extend(c.escape_debug())
        }
        cut
    });
    if text.chars().nth(60).is_some() { format!("{cut}…") } else { cut }
}

/// A text from a cell as one line: what is no letter is escaped, and what is beyond so many bytes is cut.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars() {
        let before = line.len();
        match c.is_control() {
            true => line.extend(c.escape_debug()),
            false => line.push(c),
        }
        if line.len() > most {
            line.truncate(before);
            break;
        }
    }
    line
}

/// What JSON calls the type of a value.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// The fields of one map; each is taken once, and what is left at the end is unknown.
pub(crate) struct Fields<'a> {
    prefix: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Starts on the map at `prefix` (empty for the document).
    pub(crate) fn new(prefix: &str, map: &'a Map<String, Value>) -> Self {
        Self { prefix: prefix.to_owned(), map, known: Vec::new() }
    }

    /// The full path of `key`.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    /// The value of `key`; an explicit null counts as absent.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A string.
    pub(crate) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a str> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                // `name: 123`, `path: y`: YAML reads a number or a truth value where a person meant a word.
                let fix = match other {
                    Value::Number(_) | Value::Bool(_) => "quote it to make it a string",
                    _ => "give a string",
                };
                problems.add(self.path(key), format!("is {}", type_name(other)), fix);
                None
            }
        }
    }

    /// A value read from its text form; numbers are accepted and read from their own text.
    pub(crate) fn parsed<T>(&mut self, key: &'static str, example: &str, problems: &mut Problems) -> Option<T>
    where
        T: std::str::FromStr<Err = super::BadUnit>,
    {
        let text = match self.take(key)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => {
                problems.add(
                    self.path(key),
                    format!("is {}", type_name(other)),
                    format!("give a value such as {example}"),
                );
                return None;
            }
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                problems.add(
                    self.path(key),
                    format!("`{}` is not valid: {error}", shown(&text)),
                    format!("write {example}"),
                );
                None
            }
        }
    }

    /// A map.
    pub(crate) fn map(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a Map<String, Value>> {
        match self.take(key)? {
            Value::Object(map) => Some(map),
            other => {
                problems.add(self.path(key), format!("is {}", type_name(other)), "give a map of keys to values");
                None
            }
        }
    }

    /// Reports every key that nobody took, with the nearest known one as a suggestion.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for key in self.map.keys().filter(|key| !self.known.contains(&key.as_str())) {
            problems.add(self.path(&shown(key)), "unknown key", suggestion(key, &self.known));
        }
    }
}

/// A fix for an unknown name: the nearest known one, else the list of all.
pub(crate) fn suggestion(word: &str, known: &[&str]) -> String {
    // Up to a third of the word may differ: beyond that a guess confuses more than it helps.
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), *name))
        .filter(|(distance, name)| *distance <= 1.max(name.len() / 3))
        .min();
    match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => format!("remove it; known here: {}", known.join(", ")),
    }
}

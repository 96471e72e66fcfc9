//! What a line says.

use crate::job::UnixMillis;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Characters of a text in a line: names and ids are shorter, and what a stranger sends is not kept whole.
const MOST_TEXT: usize = 200;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// Who holds a key of that name.
    Key {
        /// The key's name.
        name: String,
        /// What it may do.
        role: &'static str,
    },
    /// An agent with its own key.
    Agent(String),
    /// Somebody without a key that is known.
    Nobody,
    /// This process: a file was read again, it started, it ends.
    Itself,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done, or is under way.
    Done,
    /// It was not allowed: no key, a wrong one, not the role, too often.
    Refused,
    /// It made no sense, or what it was about is not there, or not so; nothing was changed.
    Rejected,
    /// It could not be done.
    Failed,
    /// Who asked was gone before the answer. It may have been done.
    Unanswered,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Done, Self::Refused, Self::Rejected, Self::Failed, Self::Unanswered];

    /// Its name in lines and queries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Unanswered => "unanswered",
        }
    }

    /// What an HTTP status says of it.
    pub const fn of_status(status: u16) -> Self {
        match status {
            401 | 403 | 429 => Self::Refused,
            400..=499 => Self::Rejected,
            500.. => Self::Failed,
            _ => Self::Done,
        }
    }
}

/// Something that was done, or tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// By whom.
    pub who: Who,
    /// From where; none for what this process does.
    pub from: Option<IpAddr>,
    /// What, such as `job.submit`.
    pub action: &'static str,
    /// To what: an id or a name.
    pub object: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// The answer's status.
    pub status: Option<u16>,
    /// More of what was done, or the code of why it was not.
    pub detail: Option<String>,
    /// How many it was about.
    pub count: Option<u64>,
}

impl Event {
    /// Something that this process did.
    pub fn own(action: &'static str, outcome: Outcome, detail: Option<String>) -> Self {
        Self {
            at: UnixMillis::now(),
            who: Who::Itself,
            from: None,
            action,
            object: None,
            outcome,
            status: None,
            detail,
            count: None,
        }
    }

    /// Its line. What is not there has no field.
    pub(super) fn line(&self, seq: u64) -> Vec<u8> {
        let mut line = Map::new();
        line.insert("seq".into(), json!(seq));
        line.insert("at".into(), json!(self.at.as_u64()));
        line.insert("time".into(), json!(self.at.to_string()));
        let (kind, name, role) = match &self.who {
            Who::Key { name, role } => ("key", Some(name), Some(*role)),
            Who::Agent(name) => ("agent", Some(name), None),
            Who::Nobody => ("nobody", None, None),
            Who::Itself => ("jobcell", None, None),
        };
        line.insert("by".into(), json!(kind));
        let mut text = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                line.insert(name.to_owned(), Value::String(value.chars().take(MOST_TEXT).collect()));
            }
        };
        text("who", name.cloned());
        text("role", role.map(str::to_owned));
        text("from", self.from.map(|from| from.to_string()));
        text("action", Some(self.action.to_owned()));
        text("object", self.object.clone());
        text("outcome", Some(self.outcome.name().to_owned()));
        text("detail", self.detail.clone());
        line.extend(self.status.map(|status| ("status".to_owned(), json!(status))));
        line.extend(self.count.map(|count| ("count".to_owned(), json!(count))));
        let mut bytes = serde_json::to_vec(&line).expect("a map of texts and numbers");
        bytes.push(b'\n');
        bytes
    }
}

//! `jobcell audit`: who did what at this server.

use super::client::{Client, escaped};
use super::job::list::moment;
use super::{Failure, Global, Output, show};
use crate::job::UnixMillis;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Entries that the server gives at once.
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only since then: 2h is two hours ago; a moment such as 2026-11-21T08:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<UnixMillis>,
    /// Only before then
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<UnixMillis>,
    /// Only by the key or agent of this name
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only this action, such as key.add, or all that begin with it, such as key
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only about this id or name
    #[arg(long, value_name = "ID")]
    object: Option<String>,
    /// Only what came out so
    #[arg(long, value_enum)]
    outcome: Option<Outcome>,
    /// How many, the newest
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outcome {
    /// It was done
    Done,
    /// It was not allowed
    Refused,
    /// It made no sense, or what it was about is not there
    Rejected,
    /// It could not be done
    Failed,
    /// Who asked was gone before the answer
    Unanswered,
}

pub(super) async fn run(args: AuditArgs, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    let mut query = String::new();
    let mut add = |name: &str, value: Option<String>| {
        query.extend(value.map(|value| format!("&{name}={}", escaped(&value))));
    };
    add("since", args.since.map(|at| at.as_u64().to_string()));
    add("until", args.until.map(|at| at.as_u64().to_string()));
    add("who", args.who);
    add("action", args.action);
    add("object", args.object);
    add("outcome", args.outcome.and_then(|outcome| Some(outcome.to_possible_value()?.get_name().to_owned())));
    let (mut entries, mut before, mut unreadable) = (Vec::new(), None, 0);
    loop {
        let left = args.limit.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX));
        if left == 0 {
            break;
        }
        let place = before.map(|before: u64| format!("&before={before}")).unwrap_or_default();
        let page = client.audit(&format!("limit={}{query}{place}", left.min(PAGE))).await?;
        unreadable = page["unreadable"].as_u64().unwrap_or(0).max(unreadable);
        entries.extend(page["entries"].as_array().cloned().unwrap_or_default());
        before = page["next"].as_u64();
        if before.is_none() {
            break;
        }
    }
    // As a log is read: what came last stands last.
    entries.reverse();
    if unreadable > 0 {
        global.note(&format!("{unreadable} lines of the log cannot be read"));
    }
    if global.output == Output::Table && entries.is_empty() {
        global.note("nothing in the log fits");
        return Ok(0);
    }
    let list = json!({ "entries": entries });
    global.output.print(&list, || table(&list["entries"]))?;
    Ok(0)
}

fn table(entries: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |entry: &Value| {
        let who = if entry["who"].is_null() { text(&entry["by"]) } else { text(&entry["who"]) };
        let count = if entry["count"].is_null() { String::new() } else { format!("{} times or jobs", entry["count"]) };
        let more = [text(&entry["detail"]), count].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        vec![
            text(&entry["time"]),
            who,
            or_dash(text(&entry["from"])),
            text(&entry["action"]),
            or_dash(text(&entry["object"])),
            text(&entry["outcome"]),
            or_dash(more.join(", ")),
        ]
    };
    let rows = entries.as_array().into_iter().flatten().map(row).collect();
    show::table(&["TIME", "WHO", "FROM", "ACTION", "OBJECT", "OUTCOME", "MORE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_who_did_what_and_obeys_nobody() {
        let entries = json!([
            {"time": "2026-11-21T08:00:00.000Z", "by": "key", "who": "ci", "from": "10.0.0.1", "action": "job.submit", "object": "x", "outcome": "done"},
            {"time": "2026-11-21T08:00:01.000Z", "by": "nobody", "action": "read", "object": "\u{1b}[2J", "outcome": "refused", "detail": "unauthorized", "count": 7},
        ]);
        let text = table(&entries);
        assert!(
            text.contains("ci") && text.contains("nobody") && text.contains("unauthorized, 7 times or jobs"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

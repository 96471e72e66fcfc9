//! What people read: tables and a job in full. Text from outside is escaped: it cannot move the cursor.

use super::Output;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// Text without control characters, for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A table without frames.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    let lines: Vec<String> =
        table.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or_default().to_owned()).collect();
    lines.join("\n")
}

pub(super) fn json(value: &Value) {
    println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

pub(super) fn version(output: Output) {
    let (version, warden) = (env!("CARGO_PKG_VERSION"), crate::executor::docker::warden_build());
    match output {
        Output::Json => json(&serde_json::json!({"version": version, "warden": warden, "api": "v1", "wire": 1})),
        Output::Table => println!("jobcell {version} (warden {warden}, API v1, wire 1)"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn time(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |ms| crate::job::UnixMillis::new(ms).to_string())
}

pub(super) fn jobs(list: &Value) -> String {
    let rows = list["jobs"].as_array().into_iter().flatten().map(|job| {
        let state = if job["ending"].is_null() { text(&job["phase"]) } else { text(&job["ending"]["verdict"]) };
        vec![text(&job["id"]), text(&job["name"]), state, text(&job["attempt"]), time(&job["submitted_at"])]
    });
    table(&["ID", "NAME", "STATE", "TRY", "SUBMITTED"], rows.collect())
}

/// Agents with state, load and last contact.
pub(super) fn agents(list: &Value) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for agent in list["agents"].as_array().into_iter().flatten() {
        let labels = agent["labels"].as_object().into_iter().flatten();
        let labels: Vec<String> = labels.map(|(key, value)| format!("{key}={}", text(value))).collect();
        let load = format!("{}/{}", text(&agent["load"]["held"]), text(&agent["capacity"]["slots"]));
        let mut state = text(&agent["state"]);
        if let Some(reason) = agent["load"]["unavailable"].as_str() {
            state = format!("{state}: {reason}");
        }
        let health = text(&agent["load"]["health"]);
        rows.push(vec![text(&agent["name"]), state, load, health, labels.join(","), time(&agent["last_contact"])]);
    }
    for name in list["never_seen"].as_array().into_iter().flatten() {
        rows.push(vec![text(name), "never seen".to_owned(), "-".into(), "-".into(), String::new(), "-".into()]);
    }
    table(&["NAME", "STATE", "LOAD", "HEALTH", "LABELS", "LAST CONTACT"], rows)
}

/// One line on how a job ended.
pub(super) fn ending(job: &Value) -> String {
    let ending = &job["ending"];
    let line = format!("{}: {}", text(&ending["verdict"]), text(&ending["message"]));
    let hint = ending["hint"].as_str().map(|hint| format!("\n  {hint}")).unwrap_or_default();
    let log = if job["log"]["complete"] == false { "\n  the end of its output was lost with the cell" } else { "" };
    format!("{}{}{log}", printable(&line), printable(&hint).replacen("\\n", "\n", 1))
}

/// A job in full: outcome, phases with the time each took, use, isolation.
pub(super) fn job(job: &Value) -> String {
    let mut out = format!("job       {}\n", text(&job["id"]));
    let mut line = |key: &str, value: String| out.push_str(&format!("{key:<10}{}\n", printable(&value)));
    line("name", text(&job["spec"]["name"]));
    line("phase", text(&job["phase"]));
    if !job["ending"].is_null() {
        line("outcome", format!("{}: {}", text(&job["ending"]["verdict"]), text(&job["ending"]["message"])));
        line("cause", text(&job["ending"]["cause"]["code"]));
        line("exit code", text(&job["ending"]["process_exit_code"]));
        if let Some(hint) = job["ending"]["hint"].as_str() {
            line("hint", hint.to_owned());
        }
    }
    line("agent", text(&job["agent"]));
    let log = &job["log"];
    let complete = if job["ending"].is_null() {
        "still open"
    } else if log["complete"] == true {
        "complete"
    } else {
        "incomplete"
    };
    line(
        "log",
        format!(
            "{} bytes stdout, {} bytes stderr, {} frames, {complete}",
            log["stdout"]["bytes"], log["stderr"]["bytes"], log["frames"]
        ),
    );
    if let Some(usage) = job["usage"].as_object() {
        let seconds = |key: &str| usage.get(key).and_then(Value::as_f64).unwrap_or_default() / 1e6;
        let peak = usage.get("peak_memory_bytes").and_then(Value::as_f64).unwrap_or_default() / f64::from(1 << 20);
        line(
            "use",
            format!(
                "{} wall, {:.3} s user, {:.3} s system, {peak:.1} MiB peak",
                text(&job["usage"]["wall"]),
                seconds("cpu_user_us"),
                seconds("cpu_system_us")
            ),
        );
    }
    out.push_str("\nphases\n");
    let mut before = None;
    for event in job["history"].as_array().into_iter().flatten() {
        let at = event["at"].as_u64().unwrap_or_default();
        let after = before.map_or_else(String::new, |before| format!("+{} ms", at.saturating_sub(before)));
        before = Some(at);
        let reason = printable(&text(&event["reason"]));
        out.push_str(&format!("  {} {:>10}  {:<10} {reason}\n", time(&event["at"]), after, text(&event["phase"])));
    }
    let receipt: Vec<&Value> = job["receipt"].as_array().into_iter().flatten().collect();
    if !receipt.is_empty() {
        out.push_str("\nisolation receipt (read and tried from inside the cell)\n");
        for fact in receipt {
            out.push_str(&format!("  {:<28} {}\n", printable(&text(&fact[0])), printable(&text(&fact[1]))));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_steer_a_terminal() {
        let shown = jobs(&serde_json::json!({"jobs": [{"id": "x", "name": "a\u{1b}[2Jb\n", "phase": "queued"}]}));
        assert!(!shown.contains('\u{1b}') && shown.contains("a\\u{1b}[2Jb\\n"), "{shown}");
    }
}

//! What people read: tables and a job in full. Text from outside is escaped: it cannot move the cursor.

use super::{Failure, Output, paint, terminal};
use crate::job::{ByteSize, LimitMet};
use serde_json::Value;
use std::io::Write;
use unicode_width::UnicodeWidthStr;

/// A column with this head says how something came out, and has colour.
const COLOURED: &str = "STATE";
/// Between two columns.
const GAP: usize = 2;

/// Text of one line that a terminal shows and does not obey.
pub(super) fn printable(text: &str) -> String {
    terminal::line(text)
}

/// A table without frames. Columns are laid out by what a terminal shows, colour codes apart.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect()));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.width()).max().unwrap_or(0))
        .collect();
    let line = |(number, cells): (usize, &Vec<String>)| {
        let mut line = String::new();
        let mut owed = 0;
        for ((cell, width), head) in cells.iter().zip(&widths).zip(head) {
            // Nothing is owed behind the last one: lines have no blanks at their ends.
            if !cell.is_empty() {
                line.push_str(&" ".repeat(owed));
                owed = 0;
                line.push_str(&if number > 0 && *head == COLOURED { paint::state(cell) } else { cell.clone() });
            }
            owed += width + GAP - cell.width();
        }
        line
    };
    lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

impl Output {
    /// Prints data as it was asked for: a document for programs, or what `people` makes for people.
    pub(super) fn print(self, data: &Value, people: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = match self {
            Self::Json => json(data),
            Self::Yaml => serde_saphyr::to_string(data).map_err(|error| error.to_string()).and_then(|text| {
                // JSON is YAML too, and can spell in every string what a terminal would obey.
                let plain = !text.chars().any(|c| c != '\n' && terminal::is_unsafe(c));
                if plain { Ok(text) } else { json(data) }
            }),
            Self::Table => Ok(people()),
        };
        let text = text.map_err(|error| Failure::new(format!("the data cannot be written as text: {error}")))?;
        raw(text.as_bytes());
        if !text.ends_with('\n') {
            raw(b"\n");
        }
        Ok(())
    }
}

fn json(data: &Value) -> Result<String, String> {
    serde_json::to_string_pretty(data).map(|text| terminal::json(&text)).map_err(|error| error.to_string())
}

/// Bytes to standard output. A reader that left (`| head`) wants no more, which is no failure.
pub(super) fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

pub(super) fn version(output: Output) -> Result<(), Failure> {
    let (version, warden) = (env!("CARGO_PKG_VERSION"), crate::executor::docker::warden_build());
    output.print(&serde_json::json!({"version": version, "warden": warden, "api": "v1", "wire": 1}), || {
        format!("jobcell {version} (warden {warden}, API v1, wire 1)")
    })
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
    let jobs = || list["jobs"].as_array().into_iter().flatten();
    // A column that would be empty takes room from the others.
    let hosts = jobs().any(|job| job["host"].is_string());
    let rows = jobs().map(|job| {
        let state = if job["ending"].is_null() { text(&job["phase"]) } else { text(&job["ending"]["verdict"]) };
        let mut row = vec![text(&job["id"]), text(&job["name"])];
        row.extend(hosts.then(|| text(&job["host"])));
        row.extend([state, text(&job["attempt"]), time(&job["submitted_at"])]);
        row
    });
    let mut head = vec!["ID", "NAME"];
    head.extend(hosts.then_some("HOST"));
    head.extend([COLOURED, "TRY", "SUBMITTED"]);
    table(&head, rows.collect())
}

/// Why a job stands where it stands, with what is in the way at each agent.
pub(super) fn explanation(told: &Value) -> String {
    let mut out = printable(&format!("{} ({})", text(&told["reason"]), text(&told["code"])));
    for agent in told["agents"].as_array().into_iter().flatten() {
        let reasons = agent["reasons"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        let reasons = if reasons.is_empty() { "nothing is in the way".to_owned() } else { reasons.join("; ") };
        let line = format!("{} ({}): {reasons}", text(&agent["name"]), text(&agent["state"]));
        out.push_str(&format!("\n  {}", printable(&line)));
    }
    // One time alone is what the sentence is about.
    let tries: Vec<&Value> = told["tries"].as_array().into_iter().flatten().collect();
    for one in tries.iter().filter(|_| tries.len() > 1) {
        let agent = one["agent"].as_str().map(|agent| format!(" on {agent}")).unwrap_or_default();
        let (number, reason, code) = (text(&one["attempt"]), text(&one["reason"]), text(&one["code"]));
        out.push_str(&format!("\n  {}", printable(&format!("try {number}{agent}: {reason} ({code})"))));
    }
    out
}

/// Keys with what they may do.
pub(super) fn keys(list: &Value) -> String {
    let when = |value: &Value, none: &str| if value.is_null() { none.to_owned() } else { time(value) };
    let row = |key: &Value| {
        let old = when(&key["old_until"], "-");
        let (made, expires) = (when(&key["made_at"], "-"), when(&key["expires_at"], "never"));
        let limits = if key["name"] == "admin" { "none".to_owned() } else { limits(&key["limits"]) };
        vec![text(&key["name"]), text(&key["role"]), made, expires, old, limits]
    };
    let rows = list["keys"].as_array().into_iter().flatten().map(row).collect();
    table(&["NAME", "ROLE", "MADE", "EXPIRES", "OLD SECRET UNTIL", "LIMITS"], rows)
}

/// What was said of how much a key may do.
pub(super) fn limits(limits: &Value) -> String {
    let said = limits.as_object().into_iter().flatten().map(|(what, limit)| format!("{what} {limit}"));
    let said = said.collect::<Vec<_>>().join(", ");
    if said.is_empty() { "as the server's settings say".to_owned() } else { said }
}

/// Join tokens and who used them.
pub(super) fn tokens(list: &Value) -> String {
    let row = |token: &Value| {
        let name = if token["name"].is_null() { "(any)".to_owned() } else { text(&token["name"]) };
        let used = if token["used_by"].is_null() { "-".to_owned() } else { text(&token["used_by"]) };
        vec![text(&token["id"]), name, time(&token["made_at"]), time(&token["expires_at"]), used]
    };
    let rows = list["tokens"].as_array().into_iter().flatten().map(row).collect();
    table(&["ID", "FOR", "MADE", "EXPIRES", "USED BY"], rows)
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
        if let Some(reason) = drained(list, &agent["name"]) {
            state = if state == "drained" { reason } else { format!("{state}; {reason}") };
        }
        for (kind, reason) in agent["load"]["away"].as_object().into_iter().flatten() {
            state = format!("{state}; no {kind} jobs: {}", printable(&text(reason)));
        }
        match agent["load"]["plain_hosts"].as_object().map_or(0, serde_json::Map::len) {
            0 => {}
            hosts => state = format!("{state}; {hosts} hosts in plain mode"),
        }
        let health = text(&agent["load"]["health"]);
        rows.push(vec![text(&agent["name"]), state, load, health, labels.join(","), time(&agent["last_contact"])]);
    }
    for name in list["never_seen"].as_array().into_iter().flatten() {
        let state =
            drained(list, name).map_or_else(|| "never seen".to_owned(), |reason| format!("never seen; {reason}"));
        rows.push(vec![text(name), state, "-".into(), "-".into(), String::new(), "-".into()]);
    }
    table(&["NAME", "STATE", "LOAD", "HEALTH", "LABELS", "LAST CONTACT"], rows)
}

/// That an agent is drained, with why.
fn drained(list: &Value, name: &Value) -> Option<String> {
    let drained = &list["drained"][name.as_str()?];
    let what = if drained["quarantined"] == true { "quarantined" } else { "drained" };
    match drained["reason"].as_str()? {
        "" => Some(what.to_owned()),
        reason => Some(format!("{what}: {reason}")),
    }
}

/// One line on how a job ended.
pub(super) fn ending(job: &Value) -> String {
    let ending = &job["ending"];
    let line = format!("{}: {}", text(&ending["verdict"]), text(&ending["message"]));
    let hint = ending["hint"].as_str().map(|hint| format!("\n  {hint}")).unwrap_or_default();
    let mut log = String::new();
    if job["log"]["complete"] == false {
        log.push_str("\n  the end of its output was lost with the cell");
    }
    let dropped = |stream: &str| job["log"][stream]["dropped"].as_u64().unwrap_or_default();
    if dropped("stdout") + dropped("stderr") > 0 {
        log.push_str("\n  some of its output was dropped: `jobcell job get` says where and how much");
    }
    // Of one that went well: where it did not, the hint says so.
    for met in limits_met(job).iter().filter(|_| ending["verdict"] == "succeeded") {
        log.push_str(&format!("\n  {}", printable(&met.to_string())));
    }
    format!("{}{}{log}", printable(&line), printable(&hint).replacen("\\n", "\n", 1))
}

/// How far a job says it is, in a few words.
pub(super) fn progress(job: &Value) -> Option<String> {
    let progress = &job["progress"];
    let percent = progress["percent"].as_u64()?;
    let mut told = format!("{percent} %");
    if let Some(message) = progress["message"].as_str().filter(|message| !message.is_empty()) {
        told.push_str(&format!(" {}", printable(message)));
    }
    if !progress["eta"].is_null() {
        told.push_str(&format!(", done at {}", time(&progress["eta"])));
    }
    Some(told)
}

/// What a job has given back beside its output.
fn given_back(job: &Value, line: &mut impl FnMut(&str, String)) {
    if let Some(progress) = progress(job) {
        line("progress", progress);
    }
    for step in job["steps"].as_array().into_iter().flatten() {
        let took = match (step["began_at"].as_u64(), step["ended_at"].as_u64()) {
            (Some(began), Some(ended)) => format!("took {} ms", ended.saturating_sub(began)),
            _ if job["ending"].is_null() => "goes on".to_owned(),
            _ => "never ended".to_owned(),
        };
        line("step", format!("{}: began {}, {took}", text(&step["name"]), time(&step["began_at"])));
    }
    for (key, value) in job["outputs"].as_object().into_iter().flatten() {
        line("output", format!("{key}={}", text(value)));
    }
    for problem in job["output_problems"].as_array().into_iter().flatten() {
        line("output", format!("problem: {}", text(problem)));
    }
    let artifacts = &job["artifacts"];
    if !artifacts.is_null() {
        let (count, bytes) = (text(&artifacts["count"]), text(&artifacts["bytes"]));
        let complete = if artifacts["complete"] == true { "complete" } else { "not complete" };
        line("artifacts", format!("{count} files, {bytes} bytes, {complete}"));
        for problem in artifacts["problems"].as_array().into_iter().flatten() {
            let (path, sentence) = (text(&problem["path"]), text(&problem["sentence"]));
            line("", if path.is_empty() { sentence } else { format!("{path} {sentence}") });
        }
        if let Some(more) = artifacts["more_problems"].as_u64().filter(|more| *more > 0) {
            line("", format!("and {more} more problems"));
        }
    }
}

fn limits_met(job: &Value) -> Vec<LimitMet> {
    let met = job["usage"]["limits_met"].as_array().into_iter().flatten();
    met.filter_map(|met| serde_json::from_value(met.clone()).ok()).collect()
}

/// What was removed of what was not to be kept, or would be.
pub(super) fn removed(removed: &Value) -> String {
    let count = |what: &str| removed[what].as_u64().unwrap_or_default();
    let would = if removed["dry_run"] == true { "would be removed" } else { "removed" };
    let bytes = ByteSize::new(count("bytes"));
    let mut out = format!("{would}: {} jobs, and the output of {} more ({bytes})", count("jobs"), count("outputs"));
    if count("held") > 0 {
        out.push_str(&format!("\nstay for now: {}, whose output is being read or written", count("held")));
    }
    out
}

/// A job in full: outcome, phases with the time each took, use, isolation.
pub(super) fn job(job: &Value) -> String {
    let mut out = format!("job       {}\n", text(&job["id"]));
    let mut line = |key: &str, value: String| {
        let value = printable(&value);
        // Colour comes after the escaping.
        let value = match value.split_once(':').filter(|_| key == "outcome") {
            Some((verdict, message)) => format!("{}:{message}", paint::state(verdict)),
            None => value,
        };
        out.push_str(&format!("{key:<10}{value}\n"));
    };
    line("name", text(&job["spec"]["name"]));
    let target = &job["spec"]["target"];
    if let Some(host) = target["host"].as_str() {
        line("host", host.to_owned());
    }
    if let Some(parent) = job["parent"].as_str() {
        line("parent", parent.to_owned());
    }
    if let Some(children) = job["children"].as_object() {
        let count = |what: &str| children.get(what).map(text).unwrap_or_default();
        let (all, ended, succeeded) = (count("all"), count("ended"), count("succeeded"));
        line("hosts", format!("{all}: {ended} ended, {succeeded} of them well"));
    }
    line("phase", text(&job["phase"]));
    if !job["ending"].is_null() {
        line("outcome", format!("{}: {}", text(&job["ending"]["verdict"]), text(&job["ending"]["message"])));
        line("cause", text(&job["ending"]["cause"]["code"]));
        line("exit code", text(&job["ending"]["process_exit_code"]));
        if let Some(hint) = job["ending"]["hint"].as_str() {
            line("hint", hint.to_owned());
        }
    }
    let next = &job["next_try"];
    if !next.is_null() {
        let (number, of, at) = (text(&next["number"]), text(&next["of"]), time(&next["not_before"]));
        line("waits", format!("until {at} for try {number} of {of}: {}", text(&next["cause"])));
    }
    let put_off = &job["put_off"];
    if !put_off.is_null() && job["phase"] == "queued" {
        line("waits", printable(&format!("until {}: {}", time(&put_off["not_before"]), text(&put_off["reason"]))));
    }
    if !job["given_up"].is_null() {
        line("given up", text(&job["given_up"]["reason"]));
        if let Some(by) = job["given_up"]["replayed_by"].as_str() {
            line("replayed", format!("as {by}"));
        }
    }
    for past in job["past_tries"].as_array().into_iter().flatten() {
        line("try", format!("of attempt {}: {}", text(&past["attempt"]), text(&past["message"])));
    }
    line("agent", text(&job["agent"]));
    if !job["image"].is_null() {
        let (image, id) = (&job["image"], text(&job["image"]["id"]));
        let pulled = if image["pulled"] == true { ", pulled for it" } else { "" };
        line("image", format!("{}: {}{pulled}", text(&image["reference"]), image["digest"].as_str().unwrap_or(&id)));
    }
    for clamp in job["clamped"].as_array().into_iter().flatten() {
        let (path, asked, given) = (text(&clamp["path"]), text(&clamp["asked"]), text(&clamp["given"]));
        line("less", printable(&format!("{path}: {given} by the operator's policy, asked for {asked}")));
    }
    let log = &job["log"];
    let gaps = log["gaps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let complete = if job["ending"].is_null() {
        "still open"
    } else if log["complete"] == true {
        if gaps.is_empty() { "complete" } else { "complete but for gaps" }
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
    for gap in gaps {
        let (bytes, stream, at) = (text(&gap["bytes"]), text(&gap["stream"]), text(&gap["at"]));
        line("gap", format!("{bytes} bytes of {stream} behind its byte {at}"));
    }
    let dropped = |stream: &str| log[stream]["dropped"].as_u64().unwrap_or_default();
    let told: u64 = gaps.iter().filter_map(|gap| gap["bytes"].as_u64()).sum();
    if dropped("stdout") + dropped("stderr") > told {
        let (stdout, stderr) = (dropped("stdout"), dropped("stderr"));
        line("gap", format!("and more: {stdout} bytes of stdout and {stderr} of stderr in all"));
    }
    if let Some(code) = job["usage"]["on_cancel_exit_code"].as_i64() {
        line("on cancel", format!("its command ended with code {code}"));
    }
    for met in limits_met(job) {
        line("limit", format!("{met}; {}", met.hint()));
    }
    let out_by = &job["usage"]["egress"];
    if !out_by.is_null() {
        let connections = out_by["connections"].as_u64().unwrap_or_default();
        let s = if connections == 1 { "" } else { "s" };
        let (came, went, refused) = (text(&out_by["bytes_in"]), text(&out_by["bytes_out"]), text(&out_by["refused"]));
        line("egress", format!("{connections} connection{s}, {came} bytes in, {went} bytes out, {refused} refused"));
    }
    for refusal in out_by["refusals"].as_array().into_iter().flatten() {
        let (host, port, reason) = (text(&refusal["host"]), text(&refusal["port"]), text(&refusal["reason"]));
        line(
            "refused",
            format!("{host}:{port}: {reason} ({}, {} times)", text(&refusal["code"]), text(&refusal["times"])),
        );
    }
    if let Some(usage) = job["usage"].as_object() {
        let seconds = |key: &str| usage.get(key).and_then(Value::as_f64).unwrap_or_default() / 1e6;
        let peak = usage.get("peak_memory_bytes").and_then(Value::as_f64).unwrap_or_default() / f64::from(1 << 20);
        let wall = text(&job["usage"]["wall"]);
        let (user, system) = (seconds("cpu_user_us"), seconds("cpu_system_us"));
        let plain = job["receipt"].as_array().into_iter().flatten().any(|fact| fact[0] == "mode" && fact[1] == "plain");
        line(
            "use",
            if plain {
                format!("{wall} wall; in plain mode nobody measures processor time and memory")
            } else {
                format!("{wall} wall, {user:.3} s user, {system:.3} s system, {peak:.1} MiB peak")
            },
        );
    }
    given_back(job, &mut line);
    out.push_str("\nphases\n");
    let mut before = None;
    for event in job["history"].as_array().into_iter().flatten() {
        let at = event["at"].as_u64().unwrap_or_default();
        let after = before.map_or_else(String::new, |before| format!("+{} ms", at.saturating_sub(before)));
        before = Some(at);
        let reason = printable(&text(&event["reason"]));
        out.push_str(&format!("  {} {:>10}  {:<10} {reason}\n", time(&event["at"]), after, text(&event["phase"])));
    }
    let timings: Vec<&Value> = job["timings"].as_array().into_iter().flatten().collect();
    if !timings.is_empty() {
        out.push_str("\nthe last try, as its agent measured it\n");
        for timing in timings {
            let at = |key: &str| timing[key].as_u64().unwrap_or_default();
            let took = format!("{} ms", at("ended_at").saturating_sub(at("began_at")));
            out.push_str(&format!(
                "  {} {took:>10}  {}\n",
                time(&timing["began_at"]),
                printable(&text(&timing["phase"]))
            ));
        }
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

    #[test]
    fn what_nobody_measured_is_not_shown_as_nothing() {
        let mut document = serde_json::json!({"id": "x", "spec": {"target": {"host": "web1"}}, "usage": {"wall": "2s"},
            "receipt": [["mode", "plain"]]});
        assert!(job(&document).contains("use       2s wall; in plain mode nobody measures"), "{}", job(&document));
        document["receipt"] = serde_json::json!([["mode", "resident"]]);
        assert!(job(&document).contains("0.000 s user"), "{}", job(&document));
        assert!(job(&document).contains("host      web1\n"), "{}", job(&document));
    }

    #[test]
    fn documents_in_yaml_are_read_back_and_cannot_steer_a_terminal_either() {
        let texts =
            ["a\u{1b}[2J", "b\u{9b}2J\u{7f}", "yes", "1:30", "", "- x: y # z", "two\nlines\n", "tab\there", "ü日"];
        let document =
            serde_json::json!({"texts": texts, "none": null, "no": false, "number": 1795254831567u64, "map": {}});
        let yaml = serde_saphyr::to_string(&document).expect("is written");
        assert!(!yaml.chars().any(|c| c.is_control() && c != '\n'), "{yaml:?}");
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("is read"), document, "{yaml}");
    }

    #[test]
    fn columns_are_in_line_whatever_is_in_them_and_lines_have_no_blanks_at_their_ends() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let shown = table(&["A", "STATE", "B"], vec![row(["x", "failed", ""]), row(["日本", "", "é"])]);
        assert_eq!(shown, "A     STATE   B\nx     failed\n日本          é");
    }
}

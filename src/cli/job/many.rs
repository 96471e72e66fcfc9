//! Several specs in one submit: which there are in the files, and what became of each.
//!
//! Reads documents and nothing more; whether a spec is good, the API says.

use super::stay::{self, LAST_LOOK, Limit};
use crate::cli::client::{self, Client};
use crate::cli::{Failure, Global, Output, exit, show};
use crate::job::parse_json;
use serde_json::{Value, json};
use std::path::Path;

/// A spec, and where it stands.
#[derive(Debug, PartialEq)]
pub(super) struct Document {
    place: String,
    pub(super) spec: Value,
}

/// True for a file with more than one spec. One that cannot be read counts as one: the API says what is wrong with it.
pub(super) fn has_several(name: &str, text: &str) -> bool {
    is_lines(name, text) || serde_saphyr::from_multiple::<Value>(text).is_ok_and(|all| all.len() > 1)
}

/// True for JSON on each line: by the file's name, or because several lines look like it.
fn is_lines(name: &str, text: &str) -> bool {
    let named = Path::new(name).extension().is_some_and(|kind| kind == "ndjson" || kind == "jsonl");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    let braced = |line: &str| line.starts_with('{') && line.ends_with('}');
    named || (lines.clone().nth(1).is_some() && lines.peek().is_some() && lines.all(braced))
}

/// The specs of a file. Errors: it cannot be read as such, or has none.
pub(super) fn documents(name: &str, text: &str) -> Result<Vec<Document>, Failure> {
    let bad = |place: &str, reason: &str| Failure::usage(format!("{place}: {}", show::printable(reason)));
    if is_lines(name, text) {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines
            .map(|(number, line)| {
                let place = format!("{name}, line {}", number + 1);
                let spec = parse_json(line.as_bytes()).map_err(|problems| bad(&place, problems.to_string().trim()))?;
                Ok(Document { place, spec })
            })
            .collect();
    }
    let all: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let error = error.to_string();
        let line = error.lines().next().unwrap_or_default();
        bad(name, &format!("is not valid YAML: {}", line.strip_prefix("error: ").unwrap_or(line)))
    })?;
    if all.is_empty() {
        return Err(bad(name, "there is no job in it"));
    }
    let alone = all.len() == 1;
    let place = |number: usize| if alone { name.to_owned() } else { format!("{name}, document {}", number + 1) };
    Ok(all.into_iter().enumerate().map(|(number, spec)| Document { place: place(number), spec }).collect())
}

/// The one spec of a file. Errors: it cannot be read as such, or there are others.
pub(super) fn only(name: &str, text: &str) -> Result<Value, Failure> {
    let mut all = documents(name, text)?.into_iter();
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one.spec),
        _ => Err(Failure::usage(format!("{name}: holds several jobs, and one is wanted"))),
    }
}

/// Submits all of them in one request, and waits for their ends, for so long at most, if that is wanted.
pub(super) async fn submit(
    client: &Client,
    documents: Vec<Document>,
    partial: bool,
    dedupe: bool,
    wait: Option<Limit>,
    global: &Global,
) -> Result<u8, Failure> {
    let (places, specs): (Vec<String>, Vec<Value>) = documents.into_iter().map(|one| (one.place, one.spec)).unzip();
    let mut answer = client.submit_many(&json!(specs), partial, dedupe).await.map_err(|mut failure| {
        failure.message = named(&failure.message, &places);
        failure
    })?;
    let gave_up = match wait {
        Some(limit) => ends(client, &mut answer, limit, global).await?,
        None => None,
    };
    let wait = wait.is_some();
    global.output.print(&answer, || lines(&answer, wait))?;
    let mut code = 0;
    for (item, place) in answer["jobs"].as_array().into_iter().flatten().zip(&places) {
        if !item["problem"].is_null() {
            let failure = client::problem(&item["problem"]);
            if global.output == Output::Table {
                eprintln!("{place}: {failure}");
            }
            code = if code == 0 { failure.code } else { code };
        }
    }
    if let Some(failure) = gave_up {
        return Err(failure);
    }
    if code != 0 || !wait {
        return Ok(code);
    }
    let jobs = || answer["jobs"].as_array().into_iter().flatten();
    Ok(u8::from(!jobs().all(|item| item["job"]["ending"]["verdict"] == "succeeded")))
}

/// Puts each job's end in its place. When time is over before, it puts what is known, and gives what there is to say.
async fn ends(client: &Client, answer: &mut Value, limit: Limit, global: &Global) -> Result<Option<Failure>, Failure> {
    let Some(items) = answer["jobs"].as_array_mut() else { return Ok(None) };
    let go_on = || "those that have not ended go on: `jobcell job list` shows them".to_owned();
    for at in 0..items.len() {
        if items[at]["job"].is_null() {
            continue;
        }
        match limit.keep(go_on, stay::ended(client, &items[at]["job"], global)).await {
            Ok(job) => items[at]["job"] = job,
            Err(failure) if failure.code == exit::WAITED_OUT => {
                let _ = tokio::time::timeout(LAST_LOOK, looked_at(client, &mut items[at..])).await;
                return Ok(Some(failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

/// Puts each job as it stands in its place, as far as the API tells.
async fn looked_at(client: &Client, items: &mut [Value]) {
    for item in items.iter_mut().filter(|item| !item["job"].is_null()) {
        if let Ok(job) = client.get(item["job"]["id"].as_str().unwrap_or_default()).await {
            item["job"] = job;
        }
    }
}

/// The ids, or how each of them ended.
fn lines(answer: &Value, ended: bool) -> String {
    let jobs: Vec<&Value> =
        answer["jobs"].as_array().into_iter().flatten().map(|item| &item["job"]).filter(|job| !job.is_null()).collect();
    let id = |job: &Value| job["id"].as_str().unwrap_or_default().to_owned();
    if !ended {
        return jobs.into_iter().map(id).collect::<Vec<_>>().join("\n");
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let row = |job: &Value| {
        let state = if job["ending"].is_null() { &job["phase"] } else { &job["ending"]["verdict"] };
        vec![id(job), text(&job["spec"]["name"]), text(state), text(&job["ending"]["message"])]
    };
    show::table(&["ID", "NAME", "STATE", "OUTCOME"], jobs.into_iter().map(row).collect())
}

/// Names the file of each problem in place of the number that the request gave it.
fn named(message: &str, places: &[String]) -> String {
    let line = |line: &str| {
        let (number, rest) = line.strip_prefix("  [")?.split_once(']')?;
        let place = places.get(number.parse::<usize>().ok()?)?;
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        Some(if rest.starts_with(':') { format!("  {place}{rest}") } else { format!("  {place}: {rest}") })
    };
    message.lines().map(|text| line(text).unwrap_or_else(|| text.to_owned())).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_one_spec_or_several() {
        for (name, text, places) in [
            ("a.yaml", "preset: bash\nscript: x\n", &["a.yaml"][..]),
            ("a.yaml", "---\npreset: bash\n---\npreset: python\n", &["a.yaml, document 1", "a.yaml, document 2"]),
            ("a.json", "{\n \"preset\": \"bash\"\n}\n", &["a.json"]),
            ("-", "{\"a\": 1}\n\n{\"b\": 2}\n", &["-, line 1", "-, line 3"]),
            ("a.ndjson", "{\"a\": 1}\n", &["a.ndjson, line 1"]),
        ] {
            assert_eq!(only(name, text).is_ok(), places.len() == 1, "{name}");
            let found = documents(name, text).expect("is read");
            assert_eq!(found.iter().map(|one| one.place.as_str()).collect::<Vec<_>>(), places);
            assert_eq!(has_several(name, text), places[0] != name, "{text}");
        }
        for (name, text, wanted) in [
            ("a.yaml", "", "a.yaml: there is no job in it"),
            ("a.jsonl", "{\"a\": 1, \"a\": 2}", "a.jsonl, line 1: "),
            ("a.yaml", "a: [", "a.yaml: "),
        ] {
            let said = documents(name, text).expect_err("is refused").to_string();
            assert!(said.starts_with(wanted), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn problems_are_told_by_their_files() {
        let places = ["a.yaml".to_owned(), "b.yaml, document 2".to_owned()];
        let message = "2 problems (bad_spec)\n  [0].timeout: x\n  [1]: is a list\n  [7].x: y";
        let wanted = "2 problems (bad_spec)\n  a.yaml: timeout: x\n  b.yaml, document 2: is a list\n  [7].x: y";
        assert_eq!(named(message, &places), wanted);
    }
}

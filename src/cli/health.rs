//! `jobcell health`: asks the process of a data directory, or the one that `--server` names, how it is; for probes of containers, and
//! for people. Needs no key.

use super::{Failure, Global, load_input};
use crate::config::data_dir;
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// A probe has a deadline of its own, and has to say why before that is over.
const LIMIT: Duration = Duration::from_secs(5);
/// Of an answer; a report of all components has a fraction of it.
const MOST_BYTES: usize = 256 << 10;
/// What says where a process answers, in the order in which they are tried: of `up` and `server`, of `agent`.
const FILES: [&str; 2] = ["endpoint", "health"];

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Only whether it answers at all, not whether jobs can run
    #[arg(long)]
    live: bool,
}

pub(super) async fn run(args: &HealthArgs, global: &Global) -> Result<u8, Failure> {
    let input = load_input(global, &[])?;
    // A probe is not to fail because somebody edits the settings: what runs is found by the data directory alone.
    let (dir, problems) = data_dir(&input);
    let urls = match &global.server {
        Some(url) => vec![super::client::address(url)?],
        None => {
            for problem in problems.iter() {
                global.note(&format!("{} {}; asking the process of {}", problem.path, problem.reason, dir.display()));
            }
            published(&dir)?
        }
    };
    let path = if args.live { "/livez" } else { "/healthz" };
    let mut reasons = Vec::new();
    for url in &urls {
        let tls = super::client::believed(url, global, &dir)?;
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).tls_backend_preconfigured(tls.config()).build();
        let http = http.map_err(|error| Failure::new(format!("no HTTP client: {error}")))?;
        match ask(&http, &format!("{url}{path}")).await {
            Ok((well, said)) => {
                let report = report(&said);
                let document = json!({"url": url, "well": well, "components": report["components"]});
                global.output.print(&document, || sentence(url, well, &report))?;
                return Ok(u8::from(!well));
            }
            Err(reason) => reasons.push(format!("{url} does not answer: {reason}")),
        }
    }
    Err(Failure::unavailable(reasons.join("; ")))
}

/// Where the process of a data directory says that it answers. Errors: none says so.
fn published(data_dir: &Path) -> Result<Vec<String>, Failure> {
    let read = |name: &&str| std::fs::read_to_string(data_dir.join(name)).ok();
    let urls = FILES.iter().filter_map(read).map(|url| url.trim().to_owned()).filter(|url| !url.is_empty());
    let urls: Vec<String> = urls.collect();
    if urls.is_empty() {
        let dir = data_dir.display();
        return Err(Failure::unavailable(format!(
            "nothing runs with the data directory {dir}: neither endpoint nor health is there; name another with --data-dir, or an \
             address with --server"
        )));
    }
    Ok(urls)
}

/// Whether the answer is a good one, and the answer. Errors: there is none.
async fn ask(http: &reqwest::Client, url: &str) -> Result<(bool, Vec<u8>), String> {
    let reason = |error: reqwest::Error| crate::tls::reason(&error);
    let mut response = http.get(url).send().await.map_err(reason)?;
    let well = response.status().is_success();
    let mut said = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(reason)? {
        if said.len() + piece.len() > MOST_BYTES {
            return Err(format!("it says more than {MOST_BYTES} bytes: is it jobcell?"));
        }
        said.extend_from_slice(&piece);
    }
    Ok((well, said))
}

/// What `/healthz` answers; null for what is no such thing.
fn report(said: &[u8]) -> Value {
    serde_json::from_slice(said).unwrap_or_default()
}

/// A line: where, how it is, and each component that is not simply well.
fn sentence(url: &str, well: bool, report: &Value) -> String {
    let mut line = format!("{url} is {}", if well { "well" } else { "not well" });
    for (name, component) in report["components"].as_object().into_iter().flatten() {
        let state = component["state"].as_str().unwrap_or("unknown");
        if state == "ok" {
            continue;
        }
        line.push_str(&format!("; {name} is {state}"));
        if let Some(reason) = component["reason"].as_str() {
            line.push_str(&format!(" ({reason})"));
        }
    }
    super::show::printable(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_not_well_and_why() {
        let report = json!({"ready": false, "components": {
            "queue": {"state": "ok"},
            "engine": {"state": "down", "reason": "unix:///x: no such\u{1b}[2J file"},
            "agent": {"state": "drained", "reason": "a new kernel"},
        }});
        assert_eq!(
            sentence("http://127.0.0.1:7807", false, &report),
            "http://127.0.0.1:7807 is not well; engine is down (unix:///x: no such\\u{1b}[2J file); agent is drained (a new kernel)"
        );
        assert_eq!(sentence("http://h:1", true, &super::report(b"ok\n")), "http://h:1 is well");
    }

    #[test]
    fn who_runs_is_read_from_the_data_directory() {
        let dir = tempfile::tempdir().expect("a folder");
        let none = published(dir.path()).expect_err("nothing is there");
        assert!(none.code == 69 && none.message.contains("--server"), "{none:?}");
        std::fs::write(dir.path().join("health"), "http://127.0.0.1:2\n").expect("writes");
        assert_eq!(published(dir.path()).expect("is there"), ["http://127.0.0.1:2"]);
        std::fs::write(dir.path().join("endpoint"), "http://127.0.0.1:1\n").expect("writes");
        assert_eq!(published(dir.path()).expect("is there"), ["http://127.0.0.1:1", "http://127.0.0.1:2"]);
    }
}

//! A job for several hosts, for people: the jobs for its hosts, and their output side by side.

use super::client::Client;
use super::follow::{self, Sink};
use super::{Failure, Output, show};
use crate::logstore::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

/// Streams that are open at the same time: a server has places for a bounded number of viewers.
const AT_ONCE: usize = 16;
/// One page of them.
const PAGE: usize = 500;

/// Whether a job is one for several hosts.
pub(super) fn is_parent(job: &Value) -> bool {
    job["spec"]["target"]["hosts"].is_array()
}

/// The jobs for its hosts, in their order.
pub(super) async fn of(client: &Client, parent: &str) -> Result<Vec<Value>, Failure> {
    let mut parts: Vec<Value> = Vec::new();
    let mut before = String::new();
    loop {
        let mut page = client.list(&format!("parent={parent}&limit={PAGE}{before}")).await?;
        parts.extend(page["jobs"].as_array_mut().map(std::mem::take).unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    parts.reverse();
    Ok(parts)
}

/// As a table.
pub(super) fn table(parts: &[Value]) -> String {
    let row = |part: &Value| {
        let ended = !part["ending"].is_null();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let state = if ended { text(&part["ending"]["verdict"]) } else { text(&part["phase"]) };
        let why = if ended { text(&part["ending"]["message"]) } else { String::new() };
        vec![text(&part["host"]), text(&part["id"]), state, why]
    };
    show::table(&["HOST", "ID", "STATE", "END"], parts.iter().map(row).collect())
}

/// The output of all of them as it comes, each line behind its host's name, until all have ended.
pub(super) async fn follow(client: &Client, parent: &str, only: Option<Stream>, output: Output) -> Result<(), Failure> {
    let parts = of(client, parent).await?;
    let width = parts.iter().filter_map(|part| part["host"].as_str()).map(str::len).max().unwrap_or(0);
    let one = |part: Value| async move {
        let id = part["id"].as_str().unwrap_or_default();
        let host = show::printable(part["host"].as_str().unwrap_or(id));
        let mut sink = Sink::beside(output).behind(format!("{host:width$} | "));
        loop {
            // Each stream is that of one try.
            follow::remote(client, id, 1, only, &mut sink).await?;
            if !client.get(id).await?["ending"].is_null() {
                return Ok(());
            }
        }
    };
    // In their order: the first ones are those that are let go first.
    stream::iter(parts.into_iter().map(one)).buffer_unordered(AT_ONCE).try_collect().await
}

/// The output of all of them as it is, one after the other.
pub(super) async fn print(client: &Client, parent: &str, stream: &str) -> Result<(), Failure> {
    let parts = of(client, parent).await?;
    let width = parts.iter().filter_map(|part| part["host"].as_str()).map(str::len).max().unwrap_or(0);
    for part in parts {
        let id = part["id"].as_str().unwrap_or_default();
        let host = show::printable(part["host"].as_str().unwrap_or(id));
        let mut sink = Sink::as_it_came().behind(format!("{host:width$} | "));
        let mut next = 1;
        loop {
            let piece = client.logs(id, stream, next).await?;
            let written = sink.write(Stream::Stdout, &piece.bytes);
            // A reader that left (`| head`) wants no more.
            if written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return Ok(());
            }
            written.map_err(|error| Failure::new(format!("output cannot be written: {error}")))?;
            if piece.end || piece.next == next {
                break;
            }
            next = piece.next;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_a_table_by_host() {
        let parts = [
            json!({"host": "web1", "id": "a", "phase": "ended", "ending": {"verdict": "failed", "message": "exited with code 1"}}),
            json!({"host": "web2", "id": "b", "phase": "queued", "ending": null}),
        ];
        let lines: Vec<String> = table(&parts).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "HOST  ID  STATE   END");
        assert!(lines[1].starts_with("web1  a") && lines[1].ends_with("exited with code 1"), "{lines:?}");
        assert!(lines[2].starts_with("web2  b") && lines[2].contains("queued"), "{lines:?}");
    }
}

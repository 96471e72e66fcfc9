//! Talks to the API: every call with a deadline, every error as the sentence that the server sent.

use super::{Failure, Global, given_key, settings};
use crate::job::{Digest, TraceContext};
use crate::tls::{self, ClientTls, Trust};
use futures_util::Stream;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use std::time::Duration;

/// An ordinary call.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one request waits for a job's end; the server may have a lower limit.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// A file, which may be large.
const DOWNLOAD: Duration = Duration::from_secs(24 * 3600);
/// Bytes in a second; a slower upload is given up.
const SLOWEST_UPLOAD: u64 = 64 * 1024;
/// On top of a `?wait=`.
const WAIT_SLACK: Duration = Duration::from_secs(15);

pub(super) struct Client {
    http: reqwest::Client,
    /// For what is not HTTP.
    pub(super) tls: ClientTls,
    pub(super) url: String,
    pub(super) key: String,
    /// Nobody said where the API is: the data directory in which nothing says it either.
    guessed: Option<std::path::PathBuf>,
}

/// The place in a trace that this command was given by whoever called it, in `TRACEPARENT` and `TRACESTATE`.
pub(super) fn own_context() -> Option<TraceContext> {
    let parent = std::env::var("TRACEPARENT").ok()?;
    TraceContext::parse(&parent, std::env::var("TRACESTATE").ok().as_deref())
}

/// A job that is submitted here is a part of the same trace.
fn traced(request: RequestBuilder) -> RequestBuilder {
    let Some(context) = own_context() else { return request };
    let request = request.header("traceparent", context.traceparent());
    if context.state.is_empty() { request } else { request.header("tracestate", &context.state) }
}

impl Client {
    /// A client for the API that the flags, the environment or the data directory name.
    pub(super) fn new(global: &Global) -> Result<Self, Failure> {
        let config = settings(global, &[], super::QUIET)?;
        let read = |name: &str| {
            std::fs::read_to_string(config.data_dir.join(name))
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let said = global.server.clone().or_else(|| read("endpoint"));
        let guessed = said.is_none().then(|| config.data_dir.clone());
        let url = match said {
            Some(url) => address(&url)?,
            None if config.server.tls.is_some() => format!("https://{}", config.server.listen),
            None => format!("http://{}", config.server.listen),
        };
        let given = given_key::API.read().map_err(Failure::usage)?;
        let key = match given.or_else(|| read("admin.key")) {
            Some(key) => key,
            None => {
                let file = config.data_dir.join("admin.key");
                return Err(Failure::unavailable(format!(
                    "no key: set JOBCELL_API_KEY or JOBCELL_API_KEY_FILE, or run as the user who can read {}; if nothing is there, `jobcell up` makes it",
                    file.display()
                )));
            }
        };
        if key.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(Failure::usage("the key has characters that no key has; look at JOBCELL_API_KEY"));
        }
        // The API is on this host or named explicitly: a proxy from the environment is not asked.
        let tls = believed(&url, global, &config.data_dir)?;
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5));
        // The key goes nowhere else.
        let http = http.redirect(reqwest::redirect::Policy::none());
        let http = http.tls_backend_preconfigured(tls.config()).build();
        let http = http.map_err(|error| Failure::new(format!("no HTTP client: {error}")))?;
        Ok(Self { http, tls, url, key, guessed })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key).timeout(LIMIT)
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let mut failure = refused(status, &text);
        if let Some(guess) = self.guess().filter(|_| status == StatusCode::UNAUTHORIZED) {
            failure.message = format!("{}; {guess}", failure.message);
        }
        Err(failure)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let reason = tls::reason(error);
        let fix = self.guess().unwrap_or_else(|| "is `jobcell up` running?".to_owned());
        Failure::unavailable(format!("{} does not answer: {reason}; {fix}", self.url))
    }

    /// Where the address comes from, when nobody named it.
    fn guess(&self) -> Option<String> {
        let dir = self.guessed.as_ref()?.display();
        Some(format!(
            "that is the usual address, since nothing runs with the data directory {dir}: start `jobcell up`, or name another with \
             --data-dir, or a server with --server"
        ))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.answer(request).await?;
        response.json().await.map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))
    }

    /// Submits a document.
    pub(super) async fn submit(&self, spec: &Value) -> Result<Value, Failure> {
        self.json(traced(self.request(Method::POST, "/v1/jobs")).json(spec)).await
    }

    /// Submits a document under a key; with `dedupe`, an equal one that is there already is answered in its place.
    pub(super) async fn submit_keyed(&self, spec: &Value, key: Option<&str>, dedupe: bool) -> Result<Value, Failure> {
        let path = if dedupe { "/v1/jobs?dedupe=content" } else { "/v1/jobs" };
        let mut request = traced(self.request(Method::POST, path)).json(spec);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.json(request).await
    }

    /// Whether the server has a content. From then on it stays for a while.
    pub(super) async fn has_blob(&self, digest: &Digest) -> Result<bool, Failure> {
        let response = self.request(Method::HEAD, &format!("/v1/blobs/{digest}")).send().await;
        match response.map_err(|error| self.unreachable(&error))?.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            // An answer to HEAD has no words; the upload says what is wrong.
            _ => Ok(false),
        }
    }

    /// Uploads a content of so many bytes.
    pub(super) async fn put_blob(
        &self,
        digest: &Digest,
        bytes: u64,
        pieces: impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static,
    ) -> Result<(), Failure> {
        let request = self
            .request(Method::PUT, &format!("/v1/blobs/{digest}"))
            .header("content-type", "application/octet-stream")
            .header("content-length", bytes)
            .timeout(LIMIT + Duration::from_secs(bytes / SLOWEST_UPLOAD))
            .body(reqwest::Body::wrap_stream(pieces));
        self.answer(request).await.map(drop)
    }

    /// Submits a text in YAML; with `dedupe`, an equal one that is there already is answered in its place.
    pub(super) async fn submit_yaml(&self, yaml: String, key: Option<&str>, dedupe: bool) -> Result<Value, Failure> {
        let path = if dedupe { "/v1/jobs?dedupe=content" } else { "/v1/jobs" };
        let request = traced(self.request(Method::POST, path));
        let mut request = request.header("content-type", "application/yaml").body(yaml);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.json(request).await
    }

    /// Submits many documents in one request.
    pub(super) async fn submit_many(&self, specs: &Value, partial: bool, dedupe: bool) -> Result<Value, Failure> {
        let dedupe = if dedupe { "&dedupe=content" } else { "" };
        let path = format!("/v1/jobs/bulk?partial={partial}{dedupe}");
        self.json(traced(self.request(Method::POST, &path)).json(specs)).await
    }

    /// Does a job again, as a new one.
    pub(super) async fn retry(&self, id: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, &format!("/v1/jobs/{}/retry", segment(id)?))).await
    }

    /// A job's report as a page of text, which has nothing in it that steers a terminal.
    pub(super) async fn report_page(&self, id: &str) -> Result<String, Failure> {
        let response = self.answer(self.request(Method::GET, &format!("/v1/jobs/{}/report", segment(id)?))).await?;
        response.text().await.map_err(|error| self.unreachable(&error))
    }

    /// A job's report as a document.
    pub(super) async fn report(&self, id: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}/report?format=json", segment(id)?))).await
    }

    /// A job as it stands.
    pub(super) async fn get(&self, id: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}", segment(id)?))).await
    }

    /// A job at its end, however long that takes.
    pub(super) async fn ended(&self, id: &str) -> Result<Value, Failure> {
        self.watched(id, LONG_WAIT, |_| ()).await
    }

    /// A job at its end; until then `see` gets it as it stands, every `pause` at least.
    pub(super) async fn watched(&self, id: &str, pause: Duration, see: impl Fn(&Value)) -> Result<Value, Failure> {
        let path = format!("/v1/jobs/{}?wait={}ms", segment(id)?, pause.as_millis());
        loop {
            let job = self.json(self.request(Method::GET, &path).timeout(pause + WAIT_SLACK)).await?;
            if !job["ending"].is_null() {
                return Ok(job);
            }
            see(&job);
        }
    }

    /// A page of jobs: those that the query asks for.
    pub(super) async fn list(&self, query: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/jobs?{query}"))).await
    }

    /// How many jobs there are, and what happened on each of the last days.
    pub(super) async fn stats(&self, days: u32) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/stats/daily?days={days}"))).await
    }

    /// Asks for a job's end; with `force`, without a grace.
    pub(super) async fn cancel(&self, id: &str, force: bool) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, &format!("/v1/jobs/{}/cancel?force={force}", segment(id)?))).await
    }

    /// Asks for the end of many.
    pub(super) async fn cancel_many(&self, which: &Value, force: bool) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, &format!("/v1/jobs/bulk-cancel?force={force}")).json(which)).await
    }

    /// Makes new jobs of dead letters.
    pub(super) async fn replay(&self, which: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, "/v1/jobs/replay").json(which)).await
    }

    /// Removes what is not to be kept any longer, or says what that is.
    pub(super) async fn collect(&self, dry_run: bool) -> Result<Value, Failure> {
        // A first look at a queue of years takes its time.
        let request = self.request(Method::POST, &format!("/v1/jobs/gc?dry_run={dry_run}"));
        self.json(request.timeout(std::time::Duration::from_secs(3600))).await
    }

    /// Deletes the output of a job that has ended.
    pub(super) async fn remove_logs(&self, id: &str) -> Result<(), Failure> {
        self.answer(self.request(Method::DELETE, &format!("/v1/jobs/{}/logs", segment(id)?))).await.map(drop)
    }

    /// A page of the files that a job has left, behind this path.
    pub(super) async fn artifacts(&self, id: &str, after: Option<&str>) -> Result<Value, Failure> {
        let after = after.map(|after| format!("?after={}", escaped(after))).unwrap_or_default();
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}/artifacts{after}", segment(id)?))).await
    }

    /// One of them, as it comes. It may take long, as long as something comes.
    pub(super) async fn artifact(
        &self,
        id: &str,
        path: &str,
    ) -> Result<impl futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + use<>, Failure> {
        let path: Vec<String> = path.split('/').map(escaped).collect();
        let path = format!("/v1/jobs/{}/artifacts/{}", segment(id)?, path.join("/"));
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key).timeout(DOWNLOAD);
        Ok(self.answer(request).await?.bytes_stream())
    }

    /// Why a job stands where it stands.
    pub(super) async fn explain(&self, id: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/jobs/{}/explain", segment(id)?))).await
    }

    /// The agents.
    pub(super) async fn agents(&self) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, "/v1/agents")).await
    }

    /// Makes a key for a new agent.
    pub(super) async fn add_agent(&self, name: &str) -> Result<Value, Failure> {
        let request = self.request(Method::POST, "/v1/agents");
        self.json(request.json(&serde_json::json!({ "name": name }))).await
    }

    /// Takes an agent's key away.
    pub(super) async fn remove_agent(&self, name: &str) -> Result<(), Failure> {
        self.answer(self.request(Method::DELETE, &format!("/v1/agents/{}", escaped(name)))).await.map(drop)
    }

    /// Makes a join token.
    pub(super) async fn create_token(&self, wanted: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, "/v1/agent-tokens").json(wanted)).await
    }

    /// The join tokens, without their secrets.
    pub(super) async fn tokens(&self) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, "/v1/agent-tokens")).await
    }

    /// Takes a join token away.
    pub(super) async fn remove_token(&self, id: &str) -> Result<(), Failure> {
        self.answer(self.request(Method::DELETE, &format!("/v1/agent-tokens/{}", escaped(id)))).await.map(drop)
    }

    /// A page of the audit log.
    pub(super) async fn audit(&self, query: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, &format!("/v1/audit?{query}"))).await
    }

    /// Says how much a key may do.
    pub(super) async fn limit_key(&self, name: &str, limits: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::PUT, &format!("/v1/keys/{}/limits", escaped(name))).json(limits)).await
    }

    /// The keys, without their secrets.
    pub(super) async fn keys(&self) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, "/v1/keys")).await
    }

    /// Makes a key.
    pub(super) async fn add_key(&self, key: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, "/v1/keys").json(key)).await
    }

    /// Gives a key another secret.
    pub(super) async fn rotate_key(&self, name: &str, overlap: Option<&str>) -> Result<Value, Failure> {
        let body = overlap.map_or_else(|| serde_json::json!({}), |overlap| serde_json::json!({ "overlap": overlap }));
        self.json(self.request(Method::POST, &format!("/v1/keys/{}/rotate", escaped(name))).json(&body)).await
    }

    /// Takes a key away.
    pub(super) async fn remove_key(&self, name: &str) -> Result<(), Failure> {
        self.answer(self.request(Method::DELETE, &format!("/v1/keys/{}", escaped(name)))).await.map(drop)
    }

    /// Has no more jobs handed to an agent.
    pub(super) async fn drain(&self, name: &str, why: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, &format!("/v1/agents/{}/drain", escaped(name))).json(why)).await
    }

    /// Has jobs handed to a drained agent again.
    pub(super) async fn resume(&self, name: &str, quarantined: bool) -> Result<Value, Failure> {
        let path = format!("/v1/agents/{}/resume?quarantined={quarantined}", escaped(name));
        self.json(self.request(Method::POST, &path)).await
    }

    /// Has an agent trusted with no more jobs.
    pub(super) async fn quarantine(&self, name: &str, why: &Value) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, &format!("/v1/agents/{}/quarantine", escaped(name))).json(why)).await
    }

    /// Raw output from frame `from` on.
    pub(super) async fn logs(&self, id: &str, stream: &str, from: u64) -> Result<RawOutput, Failure> {
        let path = format!("/v1/jobs/{}/logs?stream={stream}&from={from}", segment(id)?);
        let response = self.answer(self.request(Method::GET, &path)).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let next = header("jobcell-next-seq").and_then(|next| next.parse().ok()).unwrap_or(from);
        let end = header("jobcell-log-end").as_deref() == Some("true");
        let dropped = header("jobcell-log-dropped").and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        Ok(RawOutput { bytes: bytes.to_vec(), next, end, dropped })
    }
}

/// A piece of a job's output.
pub(super) struct RawOutput {
    pub(super) bytes: Vec<u8>,
    /// The frame that comes next.
    pub(super) next: u64,
    /// That was all there will ever be.
    pub(super) end: bool,
    /// Bytes that are missing among these.
    pub(super) dropped: u64,
}

/// Where the API is, without a slash at the end. Errors: no address of an API.
pub(super) fn address(text: &str) -> Result<String, Failure> {
    let bad = |fix: &str| {
        let text = super::show::printable(text);
        Failure::usage(format!("the API's address (--server, JOBCELL_SERVER_URL): `{text}` is none; {fix}"))
    };
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(bad("write http://host:7807, or https://host:7807")),
    }
}

/// Whose certificate is believed at this address. The process of this data directory has put its own there, which is believed whatever name
/// it is for, unless somebody names authorities. Errors: they cannot be read.
pub(super) fn believed(url: &str, global: &Global, data_dir: &std::path::Path) -> Result<ClientTls, Failure> {
    let own = || {
        let endpoint = std::fs::read_to_string(data_dir.join("endpoint")).ok()?;
        let own = (endpoint.trim() == url).then(|| std::fs::read_to_string(data_dir.join(OWN_CERTIFICATE)).ok());
        own.flatten()
    };
    let secure = url.starts_with("https://");
    let tls = match (&global.ca_file, secure.then(own).flatten()) {
        (None, Some(pem)) => ClientTls::new(Trust::Exactly(&pem)),
        (file, _) => ClientTls::for_url(url, file.as_deref()),
    };
    tls.map_err(Failure::config)
}

/// The file beside `endpoint` with the certificate that is shown there.
pub(super) const OWN_CERTIFICATE: &str = "endpoint.pem";

/// An id goes into a path only when it is one.
fn segment(id: &str) -> Result<&str, Failure> {
    match id.parse::<crate::job::JobId>() {
        Ok(_) => Ok(id),
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}

/// Text as a part of an address.
pub(super) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || byte == b'-' {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn refused(status: StatusCode, text: &str) -> Failure {
    match serde_json::from_str::<Value>(text) {
        Ok(mut document) if document.is_object() => {
            document["status"] = status.as_u16().into();
            problem(&document)
        }
        _ => Failure::new(format!("the API answered {status}")),
    }
}

/// What a problem document says.
pub(super) fn problem(document: &Value) -> Failure {
    let said = |key: &str| super::show::printable(document[key].as_str().unwrap_or_default());
    let mut message = format!("{} ({})", said("detail"), said("code"));
    for problem in document["problems"].as_array().into_iter().flatten() {
        let part = |key: &str| super::show::printable(problem[key].as_str().unwrap_or_default());
        let path = part("path");
        let path = if path.is_empty() { "(document)".to_owned() } else { path };
        message.push_str(&format!("\n  {path}: {}; {}", part("reason"), part("fix")));
    }
    match document["status"].as_u64().unwrap_or_default() {
        429 | 503 => Failure { code: super::exit::TEMPORARY, message },
        400 | 422 => Failure::usage(message),
        _ => Failure::new(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_an_api() {
        for (text, wanted) in [
            ("http://h:7807/", "http://h:7807"),
            ("http://[::1]:7807", "http://[::1]:7807"),
            ("http://h/below/", "http://h/below"),
            ("https://h:7807/", "https://h:7807"),
        ] {
            assert_eq!(address(text).map_err(|failure| failure.to_string()), Ok(wanted.to_owned()));
        }
        for (text, wanted) in [
            ("localhost:7807", "`localhost:7807` is none; write http://host:7807"),
            ("h", "write http://"),
            ("", "write http://"),
            ("ftp://h", "write http://"),
            ("http://", "write http://"),
            ("http://h?x=1", "write http://"),
        ] {
            let failure = address(text).expect_err(text);
            assert!(failure.code == super::super::exit::USAGE && failure.message.contains(wanted), "{failure}");
        }
    }
}

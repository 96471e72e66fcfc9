//! The description of the API as an OpenAPI 3.1 document, made of the routes themselves.
//!
//! Owns how the document is put together: what a handler's annotation says, plus what holds for all (who may call, what a
//! problem looks like). A handler names the codes of its problems as `x-problems`; status, words and schema come from the
//! catalogue. The file docs/openapi.json is this document, and the tests hold it to that.

pub(super) mod agents;
pub(super) mod jobs;
mod page;

use super::problem::{ERROR_CODES, ProblemDocument};
use super::{ALIASES, App, auth};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A page that loads nothing but its own style.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static DOCUMENT: LazyLock<(String, String)> = LazyLock::new(|| {
    let document = document();
    let text = serde_json::to_string_pretty(&document).expect("a document has only string keys") + "\n";
    let page = page::page(&document);
    (text, page)
});

/// The document as it is served, and as docs/openapi.json has it.
pub fn openapi_json() -> &'static str {
    &DOCUMENT.0
}

/// Routes of the description itself.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(serve_json)).routes(routes!(serve_page)).routes(routes!(serve_style))
}

fn fixed(kind: &'static str, text: &'static str) -> impl IntoResponse + use<> {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
    ];
    (headers, text)
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "description",
    responses((status = 200, description = "The OpenAPI document", body = Object)))]
async fn serve_json() -> impl IntoResponse {
    fixed("application/json", &DOCUMENT.0)
}

/// This document as a page
#[utoipa::path(get, path = "/docs", tag = "description",
    responses((status = 200, description = "The page", body = String, content_type = "text/html; charset=utf-8")))]
async fn serve_page() -> impl IntoResponse {
    fixed("text/html; charset=utf-8", &DOCUMENT.1)
}

/// The style of that page
#[utoipa::path(get, path = "/docs/style.css", tag = "description",
    responses((status = 200, description = "The style", body = String, content_type = "text/css; charset=utf-8")))]
async fn serve_style() -> impl IntoResponse {
    fixed("text/css; charset=utf-8", page::STYLE)
}

/// The whole document.
fn document() -> Value {
    let mut api = super::every_route().into_openapi();
    let mut schemas = Vec::new();
    <ProblemDocument as ToSchema>::schemas(&mut schemas);
    schemas.push((ProblemDocument::name().into_owned(), <ProblemDocument as utoipa::PartialSchema>::schema()));
    api.components.get_or_insert_default().schemas.extend(schemas);
    let mut document = serde_json::to_value(api).expect("a document has only string keys");
    document["info"] = json!({
        "title": "jobcell",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "Runs each job in a sealed container of its own. docs/api.md explains what is not said here.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    document["components"]["securitySchemes"] = json!({
        "key": {"type": "http", "scheme": "bearer", "description": "A key with a role: the one in <data_dir>/admin.key, or one from POST /v1/keys."},
        "agent_key": {"type": "http", "scheme": "bearer", "description": "An agent's own key, from POST /v1/agents."},
    });
    document["tags"] = json!([
        {"name": "jobs", "description": "Submit, find, watch, cancel, run again"},
        {"name": "output", "description": "What jobs write"},
        {"name": "artifacts", "description": "Files that jobs leave"},
        {"name": "contents", "description": "What jobs are given: files and archives, by their SHA-256"},
        {"name": "statistics", "description": "What happened"},
        {"name": "keys", "description": "Who may do what"},
        {"name": "audit", "description": "Who did what"},
        {"name": "agents", "description": "Agents and their keys, for people"},
        {"name": "agent protocol", "description": "For agents; see docs/agent-protocol.md"},
        {"name": "health", "description": "Whether it works; open to whoever reaches the port"},
        {"name": "description", "description": "This document"},
    ]);
    let paths = document["paths"].as_object_mut().expect("paths");
    // A parameter that takes slashes too has a star in the router's spelling only.
    let starred: Vec<String> = paths.keys().filter(|path| path.contains("{*")).cloned().collect();
    for path in starred {
        if let Some(item) = paths.remove(&path) {
            paths.insert(path.replace("{*", "{"), item);
        }
    }
    for (path, item) in paths.iter_mut() {
        for (method, operation) in item.as_object_mut().expect("a path") {
            finish(path, method, operation.as_object_mut().expect("an operation"));
        }
    }
    for (alias, path) in ALIASES {
        let mut item = paths[path].clone();
        for operation in item.as_object_mut().expect("a path").values_mut() {
            operation["operationId"] = json!(format!("get_{}", &alias[1..]));
            operation["summary"] = json!(format!("The same as {path}"));
        }
        paths.insert(alias.to_owned(), item);
    }
    paths.sort_keys();
    document
}

/// Who may call a path.
fn security(path: &str) -> Option<&'static str> {
    match path {
        "/v1/agent/enroll" => None,
        _ if path.starts_with("/v1/agent/") => Some("agent_key"),
        _ if path.starts_with("/v1/") => Some("key"),
        _ => None,
    }
}

/// Adds to an operation what its annotation leaves to the catalogue.
fn finish(path: &str, method: &str, operation: &mut Map<String, Value>) {
    let words: Vec<&str> = path.split(['/', '{', '}', '.', '-', '_']).filter(|word| !word.is_empty()).collect();
    operation.insert("operationId".to_owned(), json!(format!("{method}_{}", words.join("_"))));
    let named = operation.remove("x-problems").unwrap_or_else(|| json!([]));
    let mut codes: Vec<String> = serde_json::from_value(named).expect("x-problems is a list of codes");
    if let Some(scheme) = security(path) {
        operation.insert("security".to_owned(), json!([{scheme: []}]));
        codes.extend(["unauthorized", "rate_limited"].map(str::to_owned));
        if scheme == "key" {
            codes.push("forbidden".to_owned());
            // Upper case, as requests have it.
            let method = method.to_ascii_uppercase().parse().expect("a method");
            operation.insert("x-role".to_owned(), json!(auth::needed(&method, path).name()));
        }
    }
    if operation.contains_key("requestBody") {
        codes.extend(["bad_body", "body_too_large"].map(str::to_owned));
    }
    codes.push("headers_too_large".to_owned());
    let mut by_status: BTreeMap<u16, Vec<(&str, &str)>> = BTreeMap::new();
    for code in &codes {
        let known = ERROR_CODES.iter().find(|(known, ..)| known == code);
        let (code, status, means) = *known.unwrap_or_else(|| panic!("{method} {path}: {code} is not in the catalogue"));
        by_status.entry(status).or_default().push((code, means));
    }
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut).expect("responses");
    for (status, mut problems) in by_status {
        problems.sort_unstable();
        problems.dedup();
        let lines: Vec<String> = problems.iter().map(|(code, means)| format!("`{code}`: {means}")).collect();
        let codes: Vec<&str> = problems.iter().map(|(code, _)| *code).collect();
        let schema = json!({
            "allOf": [{"$ref": "#/components/schemas/ProblemDocument"}],
            "properties": {"status": {"const": status}, "code": {"enum": codes}},
        });
        let mut response = json!({
            "description": lines.join("\n"),
            "content": {"application/problem+json": {"schema": schema}},
        });
        if codes.iter().any(|code| matches!(*code, "queue_full" | "quota_full" | "rate_limited" | "unavailable")) {
            let about = "Seconds after which to try again; not always there";
            response["headers"] = json!({"Retry-After": {"description": about, "schema": {"type": "integer"}}});
        }
        let before = responses.insert(status.to_string(), response);
        assert!(before.is_none(), "{method} {path}: status {status} is both an answer and a problem");
    }
    responses.sort_keys();
}

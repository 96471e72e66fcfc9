//! The OpenAPI document is held to the code, and real answers are held to the document.

use super::stage::{Up, engine, id, root};
use jsonschema::Validator;
use reqwest::{Client, Method, Response};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

fn document() -> Value {
    serde_json::from_str(jobcell::server::openapi_json()).expect("JSON")
}

/// Every operation: path, method, what the document says.
fn operations(document: &Value) -> Vec<(String, Method, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, item): (&String, &Value)| {
        let methods = item.as_object().expect("methods").clone();
        let path = path.clone();
        methods
            .into_iter()
            .map(move |(method, said)| (path.clone(), method.to_uppercase().parse().expect("a method"), said))
    };
    paths.iter().flat_map(of).collect()
}

/// Lets no field of an object pass that its schema does not name. The document itself does not forbid more, for a later
/// version may say more; but what this version says must be there.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".to_owned(), false.into());
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

struct Schemas(Value);

impl Schemas {
    fn new() -> Self {
        let mut document = document();
        for (_, schema) in document["components"]["schemas"].as_object_mut().expect("schemas") {
            // The parts of a sum with a tag are put together from two; they are read as they are.
            if schema["allOf"].is_null() {
                close(schema);
            }
        }
        Self(document)
    }

    /// Holds a value to a schema of the document.
    fn check(&self, about: &str, schema: &Value, value: &Value) {
        let mut whole = Map::new();
        whole.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
        whole.insert("components".to_owned(), self.0["components"].clone());
        whole.insert("allOf".to_owned(), json!([schema]));
        let validator: Validator = jsonschema::validator_for(&Value::Object(whole)).expect("a schema");
        let problems: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(problems.is_empty(), "{about}: {problems:#?}\n{value:#}");
    }

    fn named(&self, name: &str, value: &Value) {
        assert!(self.0["components"]["schemas"][name].is_object(), "there is no schema {name}");
        self.check(name, &json!({"$ref": format!("#/components/schemas/{name}")}), value);
    }

    /// Holds an answer to what the document says of its status: media type and body. Gives the body.
    async fn answer(&self, path: &str, method: &str, answer: Response) -> Value {
        let about = format!("{method} {path}: {}", answer.status());
        let said = &self.0["paths"][path][method]["responses"][answer.status().as_str()];
        assert!(said.is_object(), "{about} is not in the document");
        let kind = answer.headers().get("content-type").map(|kind| kind.to_str().expect("text").to_owned());
        let text = answer.text().await.expect("reads");
        let Some(kind) = kind else {
            assert!(said["content"].is_null() && text.is_empty(), "{about} has no type");
            return Value::Null;
        };
        let content = &said["content"][&kind];
        assert!(content.is_object(), "{about}: {kind} is not in the document");
        if kind == "application/x-ndjson" {
            for line in text.lines() {
                self.check(&about, &content["schema"], &serde_json::from_str(line).expect("JSON"));
            }
            return Value::Null;
        }
        if kind == "text/event-stream" {
            for event in text.split("\n\n").filter(|event| event.contains("data:")) {
                let fields = event.lines().filter_map(|line| line.split_once(": "));
                let fields: Map<String, Value> = fields.map(|(key, value)| (key.to_owned(), value.into())).collect();
                self.check(&about, &content["schema"], &fields.into());
            }
            return Value::Null;
        }
        let body =
            if kind.ends_with("json") { serde_json::from_str(&text).expect("JSON") } else { Value::String(text) };
        self.check(&about, &content["schema"], &body);
        body
    }
}

#[test]
fn the_committed_document_is_the_one_that_the_code_makes() {
    let path = root().join("docs/openapi.json");
    let made = jobcell::server::openapi_json();
    if std::env::var_os("JOBCELL_REGENERATE").is_some() {
        std::fs::write(&path, made).expect("writes");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "docs/openapi.json is not what the code makes: run this test with JOBCELL_REGENERATE=1 and read the difference"
    );
}

#[test]
fn the_document_is_whole() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let text = document.to_string();
    let mut used = BTreeSet::new();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().expect("a name");
        assert!(schemas.contains_key(name), "{name} is used and not there");
        used.insert(name.to_owned());
    }
    assert_eq!(used, schemas.keys().cloned().collect(), "every schema is used");
    let mut ids = BTreeSet::new();
    let tags: Vec<&Value> = document["tags"].as_array().expect("tags").iter().map(|tag| &tag["name"]).collect();
    for (path, method, said) in operations(&document) {
        assert!(said["summary"].is_string(), "{method} {path} has no summary");
        assert!(ids.insert(said["operationId"].to_string()), "{method} {path}: the id is there twice");
        assert!(said["tags"].as_array().is_some_and(|of| of.len() == 1 && tags.contains(&&of[0])), "{method} {path}");
        let named = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        let parameters = said["parameters"].as_array().cloned().unwrap_or_default();
        for name in named {
            assert!(parameters.iter().any(|one| one["name"] == name && one["in"] == "path"), "{method} {path}: {name}");
        }
    }
    // These two answer what is no route.
    for (code, ..) in
        jobcell::server::ERROR_CODES.iter().filter(|(code, ..)| !matches!(*code, "no_route" | "no_method"))
    {
        assert!(text.contains(&format!("`{code}`:")), "no operation names {code}");
    }
}

#[test]
fn a_cause_has_the_codes_of_the_catalogue() {
    let page = std::fs::read_to_string(root().join("docs/errors.md")).expect("reads");
    let (_, causes) = page.split_once("## Causes of an end").expect("the part");
    let wanted: BTreeSet<&str> = causes.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let document = document();
    let one_of = document["components"]["schemas"]["Cause"]["oneOf"].as_array().expect("a sum");
    let codes = one_of.iter().map(|one| one["properties"]["code"]["enum"][0].as_str().expect("a code"));
    assert_eq!(codes.collect::<BTreeSet<_>>(), wanted);
}

/// Routes come from handlers that describe themselves. What is added by hand would be served and not described.
#[test]
fn no_route_is_added_by_hand() {
    let mut by_hand = BTreeSet::new();
    let mut folders = vec![root().join("src/server")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("reads");
            let calls = [".route(", ".nest(", ".route_service(", ".nest_service("];
            let found = calls.into_iter().flat_map(|call| text.match_indices(call).map(move |(at, _)| at + call.len()));
            by_hand.extend(found.map(|at| text[at..].split('"').nth(1).unwrap_or("?").to_owned()));
        }
    }
    let document = document();
    for path in &by_hand {
        // The second names, and an agent's own health.
        assert!(document["paths"][path].is_object(), "{path} is added by hand: annotate its handler, and use routes!");
    }
    assert!(by_hand.iter().all(|path| !path.starts_with("/v1")), "{by_hand:?}");
}

#[test]
fn messages_of_the_agent_protocol_fit_their_schemas() {
    let schemas = Schemas::new();
    for (file, name) in [
        ("register", "Register"),
        ("registered", "Registered"),
        ("claim", "ClaimRequest"),
        ("claim-answer", "ClaimAnswer"),
        ("renew", "Holdings"),
        ("renew-answer", "RenewAnswer"),
        ("lookup-answer", "LookupAnswer"),
        ("advance", "Advance"),
        ("release", "Release"),
        ("step-answer", "StepAnswer"),
        ("report", "ReportRequest"),
        ("report-answer", "ReportAnswer"),
    ] {
        let text = std::fs::read_to_string(root().join(format!("tests/golden/agent-v1/{file}.json"))).expect("reads");
        schemas.named(name, &serde_json::from_str(&text).expect("JSON"));
    }
}

#[tokio::test]
async fn every_operation_is_served_and_needs_the_key_that_it_names() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let schemas = Schemas::new();
    let agent = up.call(Method::POST, "/v1/agents", Some(&json!({"name": "other"}))).await;
    let agent = schemas.answer("/v1/agents", "post", agent).await;
    let http = Client::builder().no_proxy().timeout(std::time::Duration::from_secs(30)).build().expect("builds");
    for (path, method, said) in operations(&schemas.0) {
        let url = format!(
            "{}{}",
            up.url,
            path.replace("{id}", "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b").replace("{name}", "nobody")
        );
        let send = async |key: Option<&str>| {
            let request = http.request(method.clone(), &url);
            let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
            request.body("[").send().await.expect("answers")
        };
        let lower = method.as_str().to_lowercase();
        let (right, wrong) = (up.key.as_str(), agent["key"].as_str().expect("a key"));
        let key = match said["security"][0].as_object().and_then(|one| one.keys().next()).map(String::as_str) {
            None => None,
            Some("key") => Some((right, wrong)),
            Some(_) => Some((wrong, right)),
        };
        if let Some((_, wrong)) = key {
            assert_eq!(send(Some(wrong)).await.status().as_u16(), 401, "{method} {path}");
            let stranger = send(None).await;
            assert_eq!(stranger.status().as_u16(), 401, "{method} {path}");
            schemas.answer(&path, &lower, stranger).await;
        }
        let answer = send(key.map(|(right, _)| right)).await;
        // Also: that it is not `no_route` or `no_method`, which no operation names.
        schemas.answer(&path, &lower, answer).await;
    }
    let page = up.call(Method::GET, "/docs", None).await;
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = page.text().await.expect("reads");
    for (path, ..) in operations(&schemas.0) {
        assert!(page.contains(&format!("<code>{path}</code>")), "{path} is not on the page");
    }
    for elsewhere in ["http://", "https://", "<script", "style=", "//cdn"] {
        assert!(!page.contains(elsewhere), "{elsewhere} is on the page");
    }
    up.stop().await;
}

#[tokio::test]
async fn answers_of_a_run_fit_the_document() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let schemas = Schemas::new();
    let spec = json!({"preset": "bash", "script": "echo hello; printf '\\xff' >&2; exit 3", "name": "n", "stdin": "x",
        "interpreter": ["/bin/bash"], "env": {"A": 1}, "labels": {"a": "b"}, "timeout": "1m", "priority": 3,
        "resources": {"cpu": 0.5, "memory": "64MiB", "pids": 64}, "idempotency_key": "k", "network": "none"});
    schemas.named("NewJob", &spec);
    let job = up.call(Method::POST, "/v1/jobs?wait=60s", Some(&spec)).await;
    assert_eq!(job.status().as_u16(), 201);
    let job = schemas.answer("/v1/jobs", "post", job).await;
    assert_eq!(job["ending"]["cause"]["code"], "exit_code");
    schemas.named("NewJob", &job["spec"]);
    let command = json!({"image": "jobcell/bash", "command": ["true"]});
    let all = [
        ("/v1/jobs", Method::POST, String::new(), Some(spec.clone()), 200),
        ("/v1/jobs", Method::POST, String::new(), Some(command), 201),
        ("/v1/jobs", Method::POST, String::new(), Some(json!({"preset": "bash", "scrpt": 1})), 422),
        ("/v1/jobs", Method::GET, "?limit=1".into(), None, 200),
        ("/v1/jobs", Method::GET, "?limit=0&state=x".into(), None, 400),
        ("/v1/jobs/bulk", Method::POST, "?partial=true".into(), Some(json!([spec, {}])), 200),
        ("/v1/jobs/bulk-cancel", Method::POST, String::new(), Some(json!({"ids": [id(&job)]})), 200),
        ("/v1/jobs/bulk-cancel", Method::POST, String::new(), Some(json!({})), 400),
        ("/v1/jobs/{id}", Method::GET, String::new(), None, 200),
        ("/v1/jobs/{id}/cancel", Method::POST, String::new(), None, 200),
        ("/v1/jobs/{id}/retry", Method::POST, String::new(), None, 201),
        ("/v1/jobs/{id}/report", Method::GET, String::new(), None, 200),
        ("/v1/jobs/{id}/report", Method::GET, "?format=json".into(), None, 200),
        ("/v1/jobs/{id}/logs", Method::GET, "?stream=stdout".into(), None, 200),
        ("/v1/jobs/{id}/logs", Method::GET, "?format=json".into(), None, 200),
        ("/v1/jobs/{id}/logs", Method::GET, "?format=ndjson".into(), None, 200),
        ("/v1/jobs/{id}/logs/events", Method::GET, String::new(), None, 200),
        ("/v1/jobs/{id}/logs/live", Method::GET, String::new(), None, 400),
        ("/v1/stats/daily", Method::GET, "?days=2".into(), None, 200),
        ("/v1/agents", Method::GET, String::new(), None, 200),
        ("/healthz", Method::GET, String::new(), None, 200),
        ("/metrics", Method::GET, String::new(), None, 200),
    ];
    for (path, method, query, body, status) in all {
        let url = format!("{}{query}", path.replace("{id}", id(&job)));
        let answer = up.call(method.clone(), &url, body.as_ref()).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {url}");
        schemas.answer(path, &method.as_str().to_lowercase(), answer).await;
    }
    let lines = up.request(Method::GET, "/v1/jobs").header("accept", "application/x-ndjson").send().await;
    schemas.answer("/v1/jobs", "get", lines.expect("answers")).await;
    let part =
        up.request(Method::GET, &format!("/v1/jobs/{}/logs?stream=stdout", id(&job))).header("range", "bytes=9-");
    let part = part.send().await.expect("answers");
    assert_eq!(part.status().as_u16(), 416);
    schemas.answer("/v1/jobs/{id}/logs", "get", part).await;
    for job in up.get("/v1/jobs").await["jobs"].as_array().expect("jobs") {
        up.ended(job).await;
    }
    up.stop().await;
}

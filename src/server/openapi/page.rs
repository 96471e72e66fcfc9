//! The page for people that is made of the document: plain HTML, no script, nothing from elsewhere.
//!
//! Everything that is written comes from this program, and is escaped all the same.

use serde_json::Value;
use std::fmt::Write;

/// How the page looks, in light and in dark.
pub(super) const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { overflow-x: auto; padding: 0.5rem; border: 1px solid #8886; border-radius: 4px; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
details { border: 1px solid #8886; border-radius: 4px; padding: 0.4rem 0.8rem; margin: 0.4rem 0; }
summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid #8883; }
.method { display: inline-block; min-width: 4.5rem; font-weight: bold; text-transform: uppercase; }
";

/// Writes the page.
pub(super) fn page(document: &Value) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>jobcell API</title>\n\
         <link rel=\"stylesheet\" href=\"/docs/style.css\">\n</head>\n<body>\n",
    );
    let info = &document["info"];
    let _ = writeln!(out, "<h1>{} {}</h1>", text(&info["title"]), text(&info["version"]));
    let _ = writeln!(out, "<p>{}</p>", text(&info["description"]));
    out.push_str("<p>For programs: <a href=\"/openapi.json\">openapi.json</a>.</p>\n");
    for tag in list(&document["tags"]) {
        let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", text(&tag["name"]), text(&tag["description"]));
        for (path, method, operation) in operations(document) {
            if list(&operation["tags"]).contains(&tag["name"]) {
                describe(&mut out, path, method, operation);
            }
        }
    }
    out.push_str("<h2>Schemas</h2>\n");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let shown = serde_json::to_string_pretty(schema).unwrap_or_default();
        let name = escaped(name);
        let _ = writeln!(
            out,
            "<details id=\"schema-{name}\"><summary><code>{name}</code></summary><pre>{}</pre></details>",
            escaped(&shown)
        );
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    entries(&document["paths"])
        .flat_map(|(path, item)| entries(item).map(move |(method, operation)| (path, method, operation)))
}

fn describe(out: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = writeln!(
        out,
        "<details id=\"{}\"><summary><span class=\"method\">{method}</span> <code>{}</code> {}</summary>",
        text(&operation["operationId"]),
        escaped(path),
        text(&operation["summary"])
    );
    if let Some(about) = operation["description"].as_str() {
        let _ = writeln!(out, "<p>{}</p>", escaped(about));
    }
    let keys: Vec<String> =
        list(&operation["security"]).iter().flat_map(|one| entries(one).map(|(key, _)| escaped(key))).collect();
    let key = if keys.is_empty() { "none is needed".to_owned() } else { keys.join(", ") };
    let _ = writeln!(out, "<p>Key: {key}</p>");
    let parameters = list(&operation["parameters"]);
    if !parameters.is_empty() {
        out.push_str("<table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>\n");
        for one in parameters {
            let needed = if one["required"] == true { ", required" } else { "" };
            let _ = writeln!(
                out,
                "<tr><td><code>{}</code></td><td>{}{needed}</td><td>{}</td><td>{}</td></tr>",
                text(&one["name"]),
                text(&one["in"]),
                kind(&one["schema"]),
                text(&one["description"])
            );
        }
        out.push_str("</table>\n");
    }
    for (media, content) in entries(&operation["requestBody"]["content"]) {
        let _ = writeln!(out, "<p>Body: <code>{}</code>, {}</p>", escaped(media), kind(&content["schema"]));
    }
    out.push_str("<table><tr><th>answer</th><th>body</th><th></th></tr>\n");
    for (status, response) in entries(&operation["responses"]) {
        let bodies: Vec<String> = entries(&response["content"])
            .map(|(media, content)| format!("<code>{}</code> {}", escaped(media), kind(&content["schema"])))
            .collect();
        let about = text(&response["description"]).replace('\n', "<br>");
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td><td>{about}</td></tr>", escaped(status), bodies.join("<br>"));
    }
    out.push_str("</table></details>\n");
}

/// A schema in a word or two, with a link to the one it names.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for together in ["oneOf", "anyOf", "allOf"] {
        let parts = list(&schema[together]);
        if !parts.is_empty() {
            return parts.iter().map(kind).collect::<Vec<_>>().join(" or ");
        }
    }
    match &schema["type"] {
        Value::String(one) if one == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(one) => escaped(one),
        Value::Array(several) => several.iter().map(text).collect::<Vec<_>>().join(" or "),
        _ => String::new(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_escaped() {
        let page = page(&json!({
            "info": {"title": "<script>", "version": "1", "description": "'\"&"},
            "tags": [{"name": "a", "description": "b"}],
            "paths": {"/x": {"get": {"tags": ["a"], "summary": "<b>", "responses": {"200": {"description": "<i>"}}}}},
            "components": {"schemas": {"S": {"description": "</pre>"}}},
        }));
        for bad in ["<script", "<b>", "<i>", "</pre></pre>"] {
            assert!(!page.contains(bad), "{bad} is in {page}");
        }
        assert!(page.contains("&#39;&quot;&amp;") && page.contains("&lt;b&gt;"));
    }
}

//! What holds in the end, key by key, and where each value came from.

use super::keys::{self, KEYS, Kind};
use super::{Config, LoadInput};
use figment::Figment;
use figment::value::Value as FigmentValue;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The name of the layer that is always there.
pub(super) const BUILT_IN: &str = "built-in";

/// Settings that hold, and how they came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Every value, in the order of the example file.
    pub settings: Vec<Setting>,
    /// The same values as one document, as a file would have them.
    pub document: Value,
    /// The files that were read, the later ones on top.
    pub files: Vec<PathBuf>,
}

/// One value that holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its key, with dots.
    pub key: String,
    /// The value, without secrets.
    pub value: Value,
    /// The layer that it is from: `built-in`, a file's path, `variable NAME`, or `flag for KEY`.
    pub from: String,
}

/// Reads the values out of the merged layers, which `config` was made from.
pub(super) fn settings(figment: &Figment, config: Config, input: &LoadInput, files: Vec<PathBuf>) -> Loaded {
    let mut loaded = Loaded { config, settings: Vec::new(), document: json!({}), files };
    let Ok(root) = figment.find_value("") else { return loaded };
    for key in KEYS {
        let mut path: Vec<String> = key.path.split('.').map(str::to_owned).collect();
        let value = path.iter().try_fold(&root, |at, name| at.as_dict()?.get(name));
        if let Some(value) = value {
            collect(figment, value, key.kind, &mut path, &mut loaded);
        }
    }
    // An empty address stands for where the engine was found.
    let found = without_login(&loaded.config.docker.host);
    if let Some(host) = loaded.settings.iter_mut().find(|one| one.key == "docker.host" && one.value == "") {
        let variable = input.env.get("DOCKER_HOST").is_some_and(|host| !host.is_empty());
        host.from = if variable { "variable DOCKER_HOST" } else { BUILT_IN }.to_owned();
        host.value = Value::from(found);
        loaded.document["docker"]["host"] = host.value.clone();
    }
    loaded
}

fn collect(figment: &Figment, value: &FigmentValue, kind: Kind, path: &mut Vec<String>, loaded: &mut Loaded) {
    // An empty map is a value by itself.
    if let FigmentValue::Dict(_, inner) = value
        && !inner.is_empty()
    {
        for (name, value) in inner {
            path.push(name.clone());
            collect(figment, value, kind, path, loaded);
            path.pop();
        }
        return;
    }
    let from = figment.get_metadata(value.tag()).map_or(BUILT_IN, |layer| &layer.name).to_owned();
    let value = plain(value.deserialize().unwrap_or(Value::Null), kind);
    keys::place(&mut loaded.document, path.iter().map(String::as_str), value.clone());
    loaded.settings.push(Setting { key: path.join("."), value, from });
}

/// A value as a file would have it: numbers that came as text are numbers, and logins are left out.
fn plain(value: Value, kind: Kind) -> Value {
    match (kind, &value) {
        (Kind::Number(..) | Kind::Cores(..), Value::String(text)) => {
            let text = text.trim();
            let whole = text.parse::<u64>().map(Value::from);
            whole.or_else(|_| text.parse::<f64>().map(Value::from)).unwrap_or(value)
        }
        (Kind::Flag, Value::String(text)) => text.parse::<bool>().map_or(value, Value::from),
        (Kind::Engine, Value::String(text)) => Value::from(without_login(text)),
        _ => value,
    }
}

/// An address without `user:password@`.
fn without_login(address: &str) -> String {
    let login = address.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        Some(format!("{scheme}://…{}", &rest[at..]))
    });
    login.unwrap_or_else(|| address.to_owned())
}

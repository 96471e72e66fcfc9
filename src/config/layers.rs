//! Reads the layers and merges them.

use super::effective::{self, BUILT_IN, Loaded};
use super::{Config, DEFAULT_FILE, HostFacts, check, keys};
use crate::job::Problems;
use figment::providers::Serialized;
use figment::value::Value as FigmentValue;
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Variables that begin like settings and are none: they belong to the client side of the command line, to the job, or
/// to tests.
const NOT_SETTINGS: [&str; 4] = ["JOBCELL_API_KEY", "JOBCELL_SERVER_URL", "JOBCELL_TEST_ENGINE", "JOBCELL_CONFIG"];

/// What settings are made of.
#[derive(Debug, Clone)]
pub struct LoadInput {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Flags: the key's path and the value as text.
    pub flags: Vec<(&'static str, String)>,
    /// What defaults depend on.
    pub host: HostFacts,
}

/// One layer, with a name that a problem can be traced to.
struct Layer {
    name: String,
    document: Value,
}

impl LoadInput {
    /// The settings' file: the one that was named, or the usual one.
    pub fn main_file(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }

    /// The file, the folder beside it that more may come into, and what lies there now: whoever looks at all of them misses no change.
    pub fn watched(&self) -> Vec<PathBuf> {
        let main = self.main_file();
        let folder = main.with_file_name("conf.d");
        let more = more_files(&folder);
        [main, folder].into_iter().chain(more).collect()
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }
    fn data(&self) -> Result<figment::value::Map<Profile, figment::value::Dict>, figment::Error> {
        Serialized::defaults(&self.document).data()
    }
}

/// Loads and checks. Errors: everything that is wrong, each with path, origin and fix.
pub fn load(input: &LoadInput) -> Result<Config, Problems> {
    inspect(input).map(|loaded| loaded.config)
}

/// As [`load`], with every value and where it came from.
pub fn inspect(input: &LoadInput) -> Result<Loaded, Problems> {
    let mut problems = Problems::default();
    let defaults = keys::defaults(&input.host);
    let mut figment = Figment::from(Layer { name: BUILT_IN.into(), document: defaults.clone() });
    let files = files(input, &mut problems);
    let read = files.iter().map(|layer| PathBuf::from(&layer.name)).collect();
    for layer in [files, environment(input), flags(input)].into_iter().flatten() {
        figment = figment.merge(layer);
    }
    let merged = match figment.find_value("").and_then(|value| value.deserialize::<Value>()) {
        Ok(merged) => merged,
        Err(error) => return Err(Problems::one("", error.to_string(), "correct the file or variable named")),
    };
    let origin = |path: &str| origin_of(&figment, path);
    let config = check::check(&merged, &defaults, &input.env, &origin, problems)?;
    Ok(effective::settings(&figment, config, input, read))
}

/// Where the data is, for who needs nothing else of the settings: of the layers that can be read, whatever is wrong with the others. Also
/// what is wrong with files that cannot be read.
pub fn data_dir(input: &LoadInput) -> (PathBuf, Problems) {
    let mut problems = Problems::default();
    let mut figment = Figment::from(Layer { name: BUILT_IN.into(), document: keys::defaults(&input.host) });
    for layer in [files(input, &mut problems), environment(input), flags(input)].into_iter().flatten() {
        // A layer of which this part is no text says nothing of it.
        if layer.document["data_dir"].is_string() {
            let document = nested("data_dir", layer.document["data_dir"].as_str().unwrap_or_default());
            figment = figment.merge(Layer { name: layer.name, document });
        }
    }
    let found = figment.find_value("data_dir").ok().and_then(|value| value.into_string());
    (found.map(PathBuf::from).unwrap_or_default(), problems)
}

/// What counts in a folder of settings, by name.
fn more_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    more.retain(|path| path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml"));
    more.sort();
    more
}

/// The named file, or the usual one if it is there, then what lies in `conf.d` beside it, by name.
fn files(input: &LoadInput, problems: &mut Problems) -> Vec<Layer> {
    let main = input.main_file();
    let mut found = Vec::new();
    if input.file.is_some() || main.exists() {
        found.push(main.clone());
    }
    found.extend(more_files(&main.with_file_name("conf.d")));
    found.iter().filter_map(|file| read_file(file, problems)).collect()
}

fn read_file(file: &Path, problems: &mut Problems) -> Option<Layer> {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            problems.add(name, format!("cannot be read: {error}"), "check the path and its permissions");
            return None;
        }
    };
    match serde_saphyr::from_str::<Value>(&text) {
        Ok(mut document @ Value::Object(_)) => {
            drop_nulls(&mut document);
            Some(Layer { name, document })
        }
        // One that says nothing: it was read, and is looked at again. An empty one may be about to be written.
        Ok(Value::Null) if !text.trim().is_empty() => {
            Some(Layer { name, document: Value::Object(serde_json::Map::new()) })
        }
        Ok(Value::Null) => None,
        Ok(_) => {
            problems.add(name, "is not a map", "write `key: value` lines");
            None
        }
        Err(error) => {
            let reason = error.to_string();
            problems.add(
                name,
                format!("is not valid YAML: {}", reason.lines().next().unwrap_or_default()),
                "correct the syntax",
            );
            None
        }
    }
}

/// A section whose keys are all commented out, or a key without a value, leaves the layers below as they are.
fn drop_nulls(document: &mut Value) {
    if let Value::Object(map) = document {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

/// `JOBCELL_SECTION__KEY` for every key, and `JOBCELL_DATA_DIR` for the one without a section.
fn environment(input: &LoadInput) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (variable, value) in &input.env {
        let Some(rest) = variable.strip_prefix("JOBCELL_") else { continue };
        if NOT_SETTINGS.contains(&variable.as_str()) || !(rest.contains("__") || rest == "DATA_DIR") {
            continue;
        }
        let path = rest.to_ascii_lowercase().replace("__", ".");
        layers.push(Layer { name: format!("variable {variable}"), document: nested(&path, value) });
    }
    layers
}

fn flags(input: &LoadInput) -> Vec<Layer> {
    let one =
        |(path, value): &(&str, String)| Layer { name: format!("flag for {path}"), document: nested(path, value) };
    input.flags.iter().map(one).collect()
}

/// `a.b` and a value's text as the document `{a: {b: value}}`. The check reads numbers from text, so text is enough.
fn nested(path: &str, value: &str) -> Value {
    path.rsplit('.').fold(Value::from(value), |inner, key| Value::Object(Map::from_iter([(key.to_owned(), inner)])))
}

fn origin_of(figment: &Figment, path: &str) -> Option<String> {
    let value: FigmentValue = figment.find_value(path).ok()?;
    figment.get_metadata(value.tag()).map(|metadata| metadata.name.to_string()).filter(|name| name != BUILT_IN)
}

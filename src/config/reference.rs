//! The settings as a page for people, made from the table of keys.

use super::HostFacts;
use super::keys::{KEYS, Kind, SECTIONS};
use crate::job::ByteSize;
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;

/// The host that the page's defaults are of; the text says which of them depend on it.
fn host() -> HostFacts {
    HostFacts {
        cores: 2,
        memory: ByteSize::from_mib(8192),
        root: true,
        hostname: "host".into(),
        user_data: PathBuf::from("/home/u/.local/share"),
    }
}

/// docs/reference/configuration.md.
pub fn reference() -> String {
    let mut out = String::from(
        "# Settings\n\nEvery key, from the code; `config/jobcell.example.yaml` has the same as a file. Layers: built-in < `/etc/jobcell/config.yaml` (or `--config`) < `conf.d/*.yaml`\n\
         beside it < variables < flags. The variable of a key is `JOBCELL_` and the key in capitals with `__` for each dot: `agent.slots` is `JOBCELL_AGENT__SLOTS`. `jobcell config show --origin`\n\
         says what holds and where it is from. Defaults that depend on the host are those of one with 2 cores and 8 GiB.\n",
    );
    let mut section = "";
    for key in KEYS {
        let at = SECTIONS
            .iter()
            .filter(|(name, _)| key.path.starts_with(&format!("{name}.")))
            .max_by_key(|(name, _)| name.len());
        let (name, about) = at.copied().unwrap_or(("", ""));
        if name != section {
            section = name;
            let _ = write!(out, "\n## {name}\n\n{}\n", coded(about));
        }
        let default = match (key.default)(&host()) {
            Value::String(text) if text.is_empty() => "empty".to_owned(),
            other => format!("`{}`", other.to_string().trim_matches('"')),
        };
        let _ = write!(out, "\n### {}\n\n{}\n\n{}. Default: {default}.\n", key.path, coded(key.about), kind(key.kind));
    }
    out
}

/// Places such as `<data_dir>/endpoint` as code: otherwise a page in a browser takes what is in the brackets for an element, and shows nothing.
fn coded(about: &str) -> String {
    let word = |word: &str| {
        let place = word.trim_end_matches(['.', ',', ';', ':']);
        if place.contains('<') { format!("`{place}`{}", &word[place.len()..]) } else { word.to_owned() }
    };
    about.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What a value may be, in words.
fn kind(kind: Kind) -> String {
    match kind {
        Kind::Text => "A text".to_owned(),
        Kind::Name => "A name of 1 to 128 printable characters".to_owned(),
        Kind::Address => "Address and port".to_owned(),
        Kind::Engine => "The address of an engine".to_owned(),
        Kind::Filter => "A filter in the form of RUST_LOG".to_owned(),
        Kind::Choice(words) => format!("One of {}", words.map_code()),
        Kind::Number(least, most) => format!("A number from {least} to {most}"),
        Kind::Duration(least, most) => format!("A time from {least} to {most}, such as `90s`, `5m`, `1h30m` or `7d`"),
        Kind::Size(least, most) => format!("A size from {least} to {most}, such as `512KiB`, `64MiB` or `2GiB`"),
        Kind::Cores(least, most) => format!("Cores from {least} to {most}, such as `0.5` or `4`"),
        Kind::Flag => "`true` or `false`".to_owned(),
        Kind::Presets => "A map of names to language environments".to_owned(),
        Kind::Labels => "A map of names to values".to_owned(),
        Kind::Groups => "A map of labels to numbers".to_owned(),
        Kind::Backends => "A map of names to servers".to_owned(),
        Kind::Secrets => "A map of names to sources".to_owned(),
        Kind::Checks => "A map of checks to levels".to_owned(),
        Kind::Images => "A list of images' names".to_owned(),
        Kind::Registries => "A map of registries to logins".to_owned(),
        Kind::Origins => "A list of origins".to_owned(),
        Kind::Counters => "A map of names to outputs of jobs".to_owned(),
    }
}

trait Coded {
    fn map_code(&self) -> String;
}

impl Coded for &[&str] {
    fn map_code(&self) -> String {
        self.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    }
}

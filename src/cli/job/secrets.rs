//! `--secret NAME=…` of `job submit`, `job run` and `exec`: secrets that are said beside the spec. A value never comes from an argument, which
//! every process of the host may read, but from a file or from standard input.

use crate::cli::Failure;
use crate::job::SECRETS_BYTES;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(Debug, Args)]
pub(super) struct SecretArgs {
    /// A secret of the job: the name of one of the agent's, or @FILE for a value from a file, @- from standard input; NAME is its variable.
    /// May be given several times
    #[arg(long = "secret", value_name = "NAME=REF", value_parser = said)]
    secrets: Vec<(String, Said)>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Named(String),
    File(String),
}

/// Reads `NAME=ref` and `NAME=@file`. What it cannot read may be a secret, so it does not say it again.
fn said(text: &str) -> Result<(String, Said), String> {
    let usual = "write NAME=REF for a secret of the agent, or NAME=@FILE for a value";
    let (name, what) = text.split_once('=').ok_or(usual)?;
    let said = match what.strip_prefix('@') {
        Some("") => return Err(usual.to_owned()),
        Some(file) => Said::File(file.to_owned()),
        None if crate::job::is_secret_name(what) => Said::Named(what.to_owned()),
        None => return Err(format!("what follows the equals sign is no name of a secret; {usual}")),
    };
    Ok((name.to_owned(), said))
}

impl SecretArgs {
    /// None were given.
    pub(super) fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// One is read from standard input.
    pub(super) fn reads_stdin(&self) -> bool {
        self.secrets.iter().any(|(_, said)| *said == Said::File("-".to_owned()))
    }

    /// As they stand in a spec. Errors: a file that cannot be read.
    pub(super) fn read(&self) -> Result<Map<String, Value>, Failure> {
        if self.secrets.iter().filter(|(_, said)| *said == Said::File("-".to_owned())).count() > 1 {
            return Err(Failure::usage("--secret: standard input can be read for one of them only"));
        }
        let mut all = Map::new();
        for (name, said) in &self.secrets {
            let told = match said {
                Said::Named(from) => json!({ "from": from }),
                Said::File(file) => json!({ "value": read(name, file)?.as_str() }),
            };
            if all.insert(name.clone(), told).is_some() {
                return Err(Failure::usage(format!("--secret {name}: is given twice")));
            }
        }
        Ok(all)
    }
}

/// Standard input is one thing only. Errors: it is a spec and a secret.
pub(super) fn one_reader(args: &SecretArgs, specs: &[PathBuf]) -> Result<(), Failure> {
    match args.reads_stdin() && specs.iter().any(|file| file.as_os_str() == "-") {
        true => Err(Failure::usage("standard input is read for a spec and for a secret; put one of them into a file")),
        false => Ok(()),
    }
}

fn read(name: &str, file: &str) -> Result<Zeroizing<String>, Failure> {
    let failed = |why: String| Failure::usage(format!("--secret {name}=@{file}: {why}"));
    let mut text = Zeroizing::new(String::with_capacity(SECRETS_BYTES + 1));
    let most = SECRETS_BYTES as u64 + 1;
    let read = match file {
        "-" => std::io::stdin().lock().take(most).read_to_string(&mut text),
        _ => std::fs::File::open(Path::new(file)).and_then(|open| open.take(most).read_to_string(&mut text)),
    };
    match read {
        Ok(count) if count > SECRETS_BYTES => Err(failed(format!("is longer than {SECRETS_BYTES} bytes"))),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Adds them to a spec; what it says of one of these itself is replaced. One that is no map is left to the API to refuse.
pub(super) fn put(spec: &mut Value, secrets: &Map<String, Value>) {
    let Value::Object(map) = spec else { return };
    if secrets.is_empty() {
        return;
    }
    let there = map.entry("secrets").or_insert_with(|| json!({}));
    if there.is_null() {
        *there = json!({});
    }
    if let Value::Object(there) = there {
        there.extend(secrets.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_not_taken_from_an_argument_and_not_said_again() {
        assert_eq!(said("A=deploy"), Ok(("A".into(), Said::Named("deploy".into()))));
        assert_eq!(said("A=@-"), Ok(("A".into(), Said::File("-".into()))));
        for bad in ["hunter2", "A=hunter2 with blanks", "A=hunter2/=", "A=@", "A="] {
            let why = said(bad).expect_err("refused");
            assert!(why.contains("NAME=@FILE") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn they_come_into_the_spec_in_place_of_what_it_says() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("value");
        std::fs::write(&file, "hunter2\n").expect("writes");
        let args = |all: &[&str]| SecretArgs { secrets: all.iter().map(|one| said(one).expect("is read")).collect() };
        let from_file = format!("B=@{}", file.display());
        let secrets = args(&["A=deploy", &from_file]).read().expect("is read");
        for (spec, wanted) in [
            (json!({}), json!({"A": {"from": "deploy"}, "B": {"value": "hunter2\n"}})),
            (json!({"secrets": null}), json!({"A": {"from": "deploy"}, "B": {"value": "hunter2\n"}})),
            (
                json!({"secrets": {"A": "x", "C": "y"}}),
                json!({"A": {"from": "deploy"}, "B": {"value": "hunter2\n"}, "C": "y"}),
            ),
        ] {
            let mut spec = spec;
            put(&mut spec, &secrets);
            assert_eq!(spec["secrets"], wanted);
        }
        let twice = args(&["A=x", "A=y"]).read().expect_err("refused");
        assert!(twice.message.contains("--secret A: is given twice"), "{}", twice.message);
        let gone = args(&["A=@/nowhere/at/all"]).read().expect_err("refused");
        assert!(gone.message.contains("--secret A=@/nowhere/at/all: "), "{}", gone.message);
        let two = args(&["A=@-", "B=@-"]).read().expect_err("refused");
        assert!(two.message.contains("one of them only"), "{}", two.message);
    }
}

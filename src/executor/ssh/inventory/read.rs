//! From a document to an [`Inventory`], or to everything that is wrong with it.

use super::{Credential, Host, Inventory, KnownFiles, MOST_JUMPS, Place, address};
use crate::job::{Fields, Problems, shown, suggestion, type_name};
use crate::secrets::Source;
use russh::keys::ssh_key::{Fingerprint, HashAlg};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// Hosts, and credentials.
const MOST: usize = 100_000;
/// Entries of the list of one host.
const MOST_ENTRIES: usize = 64;

impl Inventory {
    /// Reads YAML; `usual` are the files of known hosts when it names none. Errors: every problem, with its path.
    pub fn read(text: &str, usual: &KnownFiles) -> Result<Self, Problems> {
        let document: Value = serde_saphyr::from_str(text).map_err(|error| {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default();
            let reason = format!("is not valid YAML: {}", shown(line.strip_prefix("error: ").unwrap_or(line)));
            Problems::one("", reason, "correct the syntax")
        })?;
        let Value::Object(map) = &document else {
            let fix = "write a map with `hosts` and `credentials`";
            return Err(Problems::one("", format!("is {}", type_name(&document)), fix));
        };
        let mut p = Problems::default();
        let mut fields = Fields::new("", map);
        let passwords = flag(&mut fields, "passwords", &mut p);
        let hosts = named(&mut fields, "hosts", &mut p, host);
        let credentials = named(&mut fields, "credentials", &mut p, |path, map, p| credential(path, map, passwords, p));
        let groups = groups(&mut fields, &mut p);
        let known_hosts = match texts(&mut fields, "known_hosts", &mut p) {
            Some(files) => KnownFiles {
                files: files.into_iter().filter_map(|file| path(&file, "known_hosts", &mut p)).collect(),
                named: true,
            },
            None => usual.clone(),
        };
        let direct = flag(&mut fields, "direct", &mut p);
        fields.finish(&mut p);
        let inventory = Self { hosts, groups, credentials, known_hosts, direct };
        inventory.references(&mut p);
        p.or_value(inventory)
    }

    /// Names that stand for something must have it.
    fn references(&self, p: &mut Problems) {
        let hosts: Vec<&str> = self.hosts.keys().map(String::as_str).collect();
        let credentials: Vec<&str> = self.credentials.keys().map(String::as_str).collect();
        for (name, host) in &self.hosts {
            if let Some(credential) = host.credential.as_deref().filter(|name| !self.credentials.contains_key(*name)) {
                let reason = format!("`{}` is no credential", shown(credential));
                p.add(format!("hosts.{name}.credential"), reason, suggestion(credential, &credentials));
            }
            for (at, jump) in host.jump.iter().enumerate() {
                let path = format!("hosts.{name}.jump[{at}]");
                match self.hosts.get(jump) {
                    None => p.add(path, format!("`{}` is no host", shown(jump)), suggestion(jump, &hosts)),
                    Some(over) if over.login.is_none() || over.credential.is_none() => p.add(
                        path,
                        format!("{jump} has no login or no credential"),
                        "jump hosts need both: add them there",
                    ),
                    Some(_) => {}
                }
            }
            if self.circles(name) {
                let reason = format!("leads back to itself, or over more than {MOST_JUMPS} hosts");
                p.add(format!("hosts.{name}.jump"), reason, "name the hosts on the way, from the nearest on");
            }
        }
        for (name, members) in &self.groups {
            for (at, member) in members.iter().enumerate().filter(|(_, member)| !self.hosts.contains_key(*member)) {
                let reason = format!("`{}` is no host", shown(member));
                p.add(format!("groups.{name}[{at}]"), reason, suggestion(member, &hosts));
            }
        }
    }

    /// The way to a host passes it again, or is too long.
    fn circles(&self, name: &str) -> bool {
        let (mut at, mut hops) = (name, 0);
        // Only the first of several names is reached over jump hosts of its own.
        while let Some(host) = self.hosts.get(at) {
            let Some(first) = host.jump.first() else { return false };
            hops += host.jump.len();
            if hops > MOST_JUMPS || host.jump.iter().any(|over| over == name) {
                return true;
            }
            at = first;
        }
        false
    }
}

/// Names to maps, each made into something.
fn named<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    p: &mut Problems,
    mut make: impl FnMut(&str, &Map<String, Value>, &mut Problems) -> Option<T>,
) -> BTreeMap<String, T> {
    let Some(map) = fields.map(key, p) else { return BTreeMap::new() };
    if map.len() > MOST {
        p.add(key, format!("has {} entries; at most {MOST} are taken", map.len()), "split it");
        return BTreeMap::new();
    }
    let mut all = BTreeMap::new();
    for (name, value) in map {
        let path = format!("{key}.{}", shown(name));
        if !is_name(name) {
            p.add(&path, "is no name", "write 1 to 128 letters, digits, dots, dashes and underscores");
            continue;
        }
        match value {
            Value::Object(map) => all.extend(make(&path, map, p).map(|made| (name.clone(), made))),
            other => p.add(path, format!("is {}", type_name(other)), "give a map"),
        }
    }
    all
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.len() <= 128 && !text.starts_with('-') && text.chars().all(plain)
}

/// A login that no shell and no server takes for something else.
pub(super) fn is_login(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | ':');
    !text.is_empty() && text.len() <= 256 && !text.starts_with('-') && !text.chars().any(odd)
}

fn host(path: &str, map: &Map<String, Value>, p: &mut Problems) -> Option<Host> {
    let mut fields = Fields::new(path, map);
    let known = p.iter().count();
    let at = fields.path("address");
    let given = match fields.text("address", p) {
        None => {
            p.add(at, "is missing", "write the host's name or address");
            None
        }
        Some(text) => match address(text) {
            Ok(found) => Some(found),
            Err(reason) => {
                p.add(at, format!("`{}` is not valid", shown(text)), format!("it {reason}"));
                None
            }
        },
    };
    let path_of_port = fields.path("port");
    let port = match fields.take("port").map(|value| value.as_u64().and_then(|port| u16::try_from(port).ok())) {
        None => given.as_ref().and_then(|(_, port)| *port).unwrap_or(22),
        Some(Some(port)) if port > 0 => port,
        Some(_) => {
            p.add(path_of_port, "is no port", "write a number between 1 and 65535");
            22
        }
    };
    let login = fields.text("login", p).map(str::to_owned);
    if login.as_deref().is_some_and(|login| !is_login(login)) {
        p.add(fields.path("login"), "is no login", "write the name of a user there");
    }
    let credential = fields.text("credential", p).map(str::to_owned);
    let jump = texts(&mut fields, "jump", p).unwrap_or_default();
    let at = fields.path("fingerprints");
    let pinned = texts(&mut fields, "fingerprints", p);
    if pinned.as_ref().is_some_and(Vec::is_empty) {
        p.add(&at, "is empty, so no key of the host would do", "add one, or leave the list out");
    }
    let fingerprints = pinned
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(n, text)| fingerprint(&format!("{at}[{n}]"), text, p))
        .collect();
    let at = fields.path("known_as");
    let known_as = fields.text("known_as", p).map(|name| match address(name) {
        Ok((name, None)) => name,
        _ => {
            p.add(
                at,
                format!("`{}` is no name", shown(name)),
                "write a name as known_hosts or the host's certificate has it",
            );
            String::new()
        }
    });
    fields.finish(p);
    let (address, _) = given?;
    (p.iter().count() == known).then_some(Host { address, port, login, credential, jump, fingerprints, known_as })
}

fn fingerprint(path: &str, text: &str, p: &mut Problems) -> Option<Fingerprint> {
    match Fingerprint::from_str(text) {
        Ok(found) if found.algorithm() == HashAlg::Sha256 => Some(found),
        _ => {
            let fix = "write SHA256:… as `ssh-keygen -lf` and `jobcell ssh scan` show it";
            p.add(path, format!("`{}` is no SHA-256 fingerprint", shown(text)), fix);
            None
        }
    }
}

fn credential(path: &str, map: &Map<String, Value>, passwords: bool, p: &mut Problems) -> Option<Credential> {
    let mut fields = Fields::new(path, map);
    let before = p.iter().count();
    let key_file = file(&mut fields, "key_file", p).map(Source::File);
    let at = fields.path("key");
    let key = fields.map("key", p).and_then(|map| source(&at, map, p));
    let passphrase = file(&mut fields, "passphrase_file", p).map(Source::File);
    let at = fields.path("passphrase");
    let passphrase = passphrase.or(fields.map("passphrase", p).and_then(|map| source(&at, map, p)));
    let certificate = file(&mut fields, "certificate_file", p);
    let socket = file(&mut fields, "agent_socket", p);
    let at = fields.path("fingerprint");
    let fingerprint = fields.text("fingerprint", p).and_then(|text| fingerprint(&at, text, p));
    let password = file(&mut fields, "password_file", p).map(Source::File);
    fields.finish(p);
    if p.iter().count() > before {
        return None;
    }
    if password.is_some() && !passwords {
        let fix = "use a key, or write `passwords: true` at the top of the inventory";
        p.add(format!("{path}.password_file"), "is a password, and the inventory does not allow passwords", fix);
        return None;
    }
    match (key_file.or(key), socket, password) {
        (Some(key), None, None) if fingerprint.is_none() => {
            Some(Credential::Key { key: Place(key), passphrase: passphrase.map(Place), certificate })
        }
        (None, Some(socket), None) if passphrase.is_none() && certificate.is_none() => {
            Some(Credential::Agent { socket, fingerprint })
        }
        (None, None, Some(password)) if passphrase.is_none() && certificate.is_none() && fingerprint.is_none() => {
            Some(Credential::Password(Place(password)))
        }
        _ => {
            let reason = "does not say one way to log in";
            let fix = "write `key_file` (or `key`) with `passphrase_file` and `certificate_file` if it has them, \
                `agent_socket` with `fingerprint` if only one of its keys is meant, or `password_file`";
            p.add(path, reason, fix);
            None
        }
    }
}

/// Where a secret is: one of `env`, `file` and `credential`.
fn source(path: &str, map: &Map<String, Value>, p: &mut Problems) -> Option<Source> {
    let mut fields = Fields::new(path, map);
    let known = p.iter().count();
    let env = fields.text("env", p).map(|name| Source::Env(name.to_owned()));
    let from = file(&mut fields, "file", p).map(Source::File);
    let given = fields.text("credential", p).map(|name| Source::Credential(name.to_owned()));
    fields.finish(p);
    match (env, from, given) {
        (Some(one), None, None) | (None, Some(one), None) | (None, None, Some(one)) => Some(one),
        _ if p.iter().count() > known => None,
        _ => {
            p.add(path, "does not say one place", "write {env: NAME}, {file: /path} or {credential: NAME}");
            None
        }
    }
}

fn groups(fields: &mut Fields<'_>, p: &mut Problems) -> BTreeMap<String, Vec<String>> {
    let Some(map) = fields.map("groups", p) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for (name, value) in map {
        let path = format!("groups.{}", shown(name));
        if !is_name(name) {
            p.add(&path, "is no name", "write 1 to 128 letters, digits, dots, dashes and underscores");
        }
        if let Some(members) = list(&path, value, MOST, p) {
            all.insert(name.clone(), members);
        }
    }
    all
}

fn texts(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> Option<Vec<String>> {
    let path = fields.path(key);
    fields.take(key).and_then(|value| list(&path, value, MOST_ENTRIES, p))
}

fn list(path: &str, value: &Value, most: usize, p: &mut Problems) -> Option<Vec<String>> {
    let Value::Array(items) = value else {
        p.add(path, format!("is {}", type_name(value)), "give a list");
        return None;
    };
    if items.len() > most {
        p.add(path, format!("has {} entries; at most {most} are taken", items.len()), "split it");
        return None;
    }
    let mut all = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        match item {
            Value::String(text) => all.push(text.clone()),
            other => p.add(format!("{path}[{at}]"), format!("is {}", type_name(other)), "quote it to make it a string"),
        }
    }
    Some(all)
}

fn file(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> Option<PathBuf> {
    let at = fields.path(key);
    fields.text(key, p).and_then(|text| path(text, &at, p))
}

fn path(text: &str, at: &str, p: &mut Problems) -> Option<PathBuf> {
    if !text.starts_with('/') || text.contains('\0') {
        p.add(at, format!("`{}` is no absolute path", shown(text)), "write the path from / on");
        return None;
    }
    Some(PathBuf::from(text))
}

fn flag(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> bool {
    let path = fields.path(key);
    match fields.take(key) {
        None => false,
        Some(Value::Bool(flag)) => *flag,
        Some(_) => {
            p.add(path, "is neither true nor false", "write true or false");
            false
        }
    }
}

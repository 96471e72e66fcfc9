//! Shows the keys of a host, for an operator to accept. Believes none.

use super::algorithms::{client_config, with_keys};
use super::handler::{Client, Trust};
use super::known::all_types;
use super::route::address;
use super::stream::QuickStream;
use russh::client;
use russh::keys::ssh_key::HashAlg;
use russh::keys::{Algorithm, PublicKey};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Its name and port as known_hosts has them.
    pub name: String,
    /// Its keys, the best type first.
    pub keys: Vec<ScannedKey>,
}

/// One key of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedKey {
    /// `ssh-ed25519`, …
    pub kind: String,
    /// As `ssh-keygen -lf` shows it.
    pub fingerprint: String,
    /// As a file of known_hosts has it.
    pub line: String,
}

impl Scanned {
    /// The same under the name that it is looked for by, where the inventory has one.
    #[must_use]
    pub fn known_as(mut self, name: Option<&str>) -> Self {
        if let Some(name) = name {
            for key in &mut self.keys {
                key.line = key.line.replacen(&self.name, name, 1);
            }
        }
        self
    }
}

/// Asks a host for a key of each type. Errors: it shows none; why.
pub async fn scan(host: &str, port: u16, timeout: Duration) -> Result<Scanned, String> {
    let deadline = Instant::now() + timeout;
    let mut scanned = Scanned { name: address(host, port), keys: Vec::new() };
    let mut last = None;
    for kinds in families() {
        match tokio::time::timeout_at(deadline, one(host, port, kinds, deadline)).await {
            Ok(Ok(Some(key))) => scanned.keys.push(shown(&scanned.name, &key)),
            Ok(Ok(None)) => {}
            Ok(Err(why)) => last = Some(why),
            Err(_) => last = Some(format!("it did not answer within {} s", timeout.as_secs())),
        }
    }
    match last {
        Some(why) if scanned.keys.is_empty() => Err(why),
        None if scanned.keys.is_empty() => Err("it has no key of a type that is taken".to_owned()),
        _ => Ok(scanned),
    }
}

/// Types that one key stands for.
fn families() -> Vec<Vec<Algorithm>> {
    let mut families: Vec<Vec<Algorithm>> = Vec::new();
    for kind in all_types() {
        match (families.last_mut(), &kind) {
            (Some(last), Algorithm::Rsa { .. }) if matches!(last[0], Algorithm::Rsa { .. }) => last.push(kind),
            _ => families.push(vec![kind]),
        }
    }
    families
}

fn shown(name: &str, key: &PublicKey) -> ScannedKey {
    let mut bare = key.clone();
    bare.set_comment("");
    let text = bare.to_openssh().unwrap_or_default();
    ScannedKey {
        kind: key.algorithm().as_str().to_owned(),
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        line: format!("{name} {}", text.trim()),
    }
}

/// The host's key of one of these types, if it has one. Errors: it does not speak SSH, or not at all.
async fn one(host: &str, port: u16, kinds: Vec<Algorithm>, deadline: Instant) -> Result<Option<PublicKey>, String> {
    let stream = QuickStream::connect(host, port, deadline).await?;
    let config = client_config(with_keys(kinds, Vec::new()), Duration::from_secs(5));
    let (client, verdict, _) = Client::new(Arc::new(Trust::Look));
    let result = client::connect_stream(Arc::new(config), stream, client).await;
    // It goes no further than the key: the key is believed by nobody.
    let key = verdict.lock().unwrap_or_else(PoisonError::into_inner).key.take();
    match (key, result) {
        (Some(key), _) => Ok(Some(key)),
        (None, Err(russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, .. })) => Ok(None),
        (None, Err(error)) => Err(error.to_string()),
        (None, Ok(_)) => Ok(None),
    }
}

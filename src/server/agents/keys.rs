//! The agents' keys: one each, shown once, kept as a hash in one small file.

use crate::audit::Who;
use crate::server::audited::Attempt;
use crate::server::{App, auth, bearer, kept, same_hash};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Agents that can have a key. A file of so many is still a small one.
const MOST: usize = 10_000;

/// Why a key was not made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The name cannot be one.
    #[error("`{0}` is not an agent's name: use 1 to 63 letters, digits and - _ .")]
    BadName(String),
    /// There is one of that name.
    #[error("agent `{0}` has a key already; remove it first to give it another one")]
    Exists(String),
    /// There is none of that name.
    #[error("no agent is called `{0}`")]
    Unknown(String),
    /// There are too many.
    #[error("{MOST} agents have keys; remove some first")]
    Full,
    /// The file.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    sha256: String,
}

/// All keys.
#[derive(Debug)]
pub struct AgentKeys {
    path: PathBuf,
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// The name that a request's key has; put there by the middleware.
#[derive(Debug, Clone)]
pub(super) struct AgentName(pub(super) String);

fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl AgentKeys {
    /// Reads the file; one that is not there has no keys. Errors: it cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, KeyError> {
        let kept = kept::read(&path).map_err(|reason| KeyError::File { path: path.clone(), reason })?;
        Ok(Self { path, kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key for a new agent. The key is not kept: only its hash is.
    pub fn add(&self, name: &str) -> Result<String, KeyError> {
        let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 63 || !name.bytes().all(grammar) {
            return Err(KeyError::BadName(name.chars().take(64).flat_map(char::escape_debug).collect()));
        }
        let mut kept = self.kept();
        if kept.contains_key(name) {
            return Err(KeyError::Exists(name.to_owned()));
        }
        if kept.len() >= MOST {
            return Err(KeyError::Full);
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        let key = format!("jca_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let mut with = kept.clone();
        with.insert(name.to_owned(), Kept { sha256: hash(&key) });
        self.write(&with)?;
        *kept = with;
        Ok(key)
    }

    /// Takes an agent's key away.
    pub fn remove(&self, name: &str) -> Result<(), KeyError> {
        let mut kept = self.kept();
        let mut without = kept.clone();
        without.remove(name).ok_or_else(|| KeyError::Unknown(name.to_owned()))?;
        self.write(&without)?;
        *kept = without;
        Ok(())
    }

    /// Whose key this is. What is compared are hashes, so timing tells nothing about the key.
    pub fn name_of(&self, key: &str) -> Option<String> {
        let given = hash(key);
        self.kept().iter().find(|(_, kept)| same_hash(&kept.sha256, &given)).map(|(name, _)| name.clone())
    }

    /// Whether this name has one.
    pub fn has(&self, name: &str) -> bool {
        self.kept().contains_key(name)
    }

    /// The names that have keys.
    pub fn names(&self) -> Vec<String> {
        self.kept().keys().cloned().collect()
    }

    fn write(&self, kept: &BTreeMap<String, Kept>) -> Result<(), KeyError> {
        kept::write(&self.path, kept).map_err(|reason| KeyError::File { path: self.path.clone(), reason })
    }
}

/// Lets agents in, each by its own key.
pub(in crate::server) async fn require_agent_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let attempt = Attempt::of(&request);
    let name = bearer(request.headers()).and_then(|key| app.agent_keys.name_of(key));
    match name {
        Some(name) => {
            request.extensions_mut().insert(AgentName(name.clone()));
            attempt.run(&app.audit, Who::Agent(name), next.run(request)).await
        }
        None => {
            let detail = "this path is for agents, each with a key of its own; `jobcell agents add NAME` at the server makes one";
            let problem = auth::stranger(&app, attempt.from(), detail);
            attempt.refused(&app.audit, Who::Nobody, &problem);
            problem.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_shown_once_opens_until_it_is_removed_and_its_file_is_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agents.json");
        let keys = AgentKeys::open(path.clone()).expect("opens");
        let key = keys.add("one").expect("is new");
        assert!(matches!(keys.add("one"), Err(KeyError::Exists(_))));
        for bad in ["", "a/b", "a b", "ключ", &"x".repeat(64)] {
            assert!(matches!(keys.add(bad), Err(KeyError::BadName(_))), "{bad:?}");
        }
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(!text.contains(&key[4..]), "the key itself is nowhere");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let again = AgentKeys::open(path).expect("opens again");
        assert_eq!((again.name_of(&key).as_deref(), again.name_of("jca_00")), (Some("one"), None));
        again.remove("one").expect("is there");
        assert_eq!(again.name_of(&key), None);
        assert!(matches!(again.remove("one"), Err(KeyError::Unknown(_))));
    }
}

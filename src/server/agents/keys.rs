//! The agents' keys: one each, shown once, kept as a hash in one small file.

use crate::audit::Who;
use crate::server::audited::Attempt;
use crate::server::kept::Book;
use crate::server::{App, auth, bearer, same_hash};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
pub struct AgentKeys(Book<Kept>);

/// The name that a request's key has; put there by the middleware.
#[derive(Debug, Clone)]
pub(super) struct AgentName(pub(super) String);

pub(super) fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Errors: it cannot be the name of an agent.
pub(super) fn is_name(name: &str) -> Result<(), KeyError> {
    let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(grammar) {
        return Err(KeyError::BadName(name.chars().take(64).flat_map(char::escape_debug).collect()));
    }
    Ok(())
}

impl AgentKeys {
    /// Reads the file; one that is not there has no keys. Errors: it cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, KeyError> {
        Book::open(path.clone()).map(Self).map_err(|reason| KeyError::File { path, reason })
    }

    async fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Kept>) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        self.0.change(change, |reason| KeyError::File { path: self.0.path().to_owned(), reason }).await
    }

    /// Makes a key for a new agent. The key is not kept: only its hash is.
    pub async fn add(&self, name: &str) -> Result<String, KeyError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        let key = format!("jca_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        self.insert(name, hash(&key), |_| false).await?;
        Ok(key)
    }

    /// Lets a key in by its hash, that of a new agent; with `replace`, in the place of the one that an agent of this name had. Whether there was
    /// another one.
    pub(super) async fn put(&self, name: &str, sha256: &str, replace: bool) -> Result<bool, KeyError> {
        self.insert(name, sha256.to_owned(), |known| replace || same_hash(known, sha256)).await
    }

    async fn insert(&self, name: &str, sha256: String, may: impl FnOnce(&str) -> bool) -> Result<bool, KeyError> {
        is_name(name)?;
        self.change(|all| {
            match all.get(name) {
                Some(known) if !may(&known.sha256) => return Err(KeyError::Exists(name.to_owned())),
                None if all.len() >= MOST => return Err(KeyError::Full),
                _ => {}
            }
            let before = all.insert(name.to_owned(), Kept { sha256: sha256.clone() });
            Ok(before.is_some_and(|before| before.sha256 != sha256))
        })
        .await
    }

    /// Takes an agent's key away.
    pub async fn remove(&self, name: &str) -> Result<(), KeyError> {
        self.change(|all| all.remove(name).map(drop).ok_or_else(|| KeyError::Unknown(name.to_owned()))).await
    }

    /// Whose key this is. What is compared are hashes, so timing tells nothing about the key.
    pub fn name_of(&self, key: &str) -> Option<String> {
        let given = hash(key);
        self.0.look().iter().find(|(_, kept)| same_hash(&kept.sha256, &given)).map(|(name, _)| name.clone())
    }

    /// Whether this name has one.
    pub fn has(&self, name: &str) -> bool {
        self.0.look().contains_key(name)
    }

    /// The names that have keys.
    pub fn names(&self) -> Vec<String> {
        self.0.look().keys().cloned().collect()
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

    #[tokio::test]
    async fn a_key_is_shown_once_opens_until_it_is_removed_and_its_file_is_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agents.json");
        let keys = AgentKeys::open(path.clone()).expect("opens");
        let key = keys.add("one").await.expect("is new");
        assert!(matches!(keys.add("one").await, Err(KeyError::Exists(_))));
        for bad in ["", "a/b", "a b", "ключ", &"x".repeat(64)] {
            assert!(matches!(keys.add(bad).await, Err(KeyError::BadName(_))), "{bad:?}");
        }
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(!text.contains(&key[4..]), "the key itself is nowhere");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let again = AgentKeys::open(path).expect("opens again");
        assert_eq!((again.name_of(&key).as_deref(), again.name_of("jca_00")), (Some("one"), None));
        again.remove("one").await.expect("is there");
        assert_eq!(again.name_of(&key), None);
        assert!(matches!(again.remove("one").await, Err(KeyError::Unknown(_))));
    }
    #[tokio::test]
    async fn a_hash_is_let_in_for_a_new_name_or_again_or_by_the_operators_word() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = AgentKeys::open(dir.path().join("agents.json")).expect("opens");
        keys.put("one", &hash("a"), false).await.expect("is new");
        keys.put("one", &hash("a"), false).await.expect("is the same");
        assert!(matches!(keys.put("one", &hash("b"), false).await, Err(KeyError::Exists(_))));
        assert_eq!((keys.name_of("a").as_deref(), keys.name_of("b")), (Some("one"), None));
        keys.put("one", &hash("b"), true).await.expect("replaces");
        assert_eq!((keys.name_of("a"), keys.name_of("b").as_deref()), (None, Some("one")));
    }

    #[tokio::test]
    async fn a_change_goes_on_when_its_caller_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("agents.json");
        let keys = AgentKeys::open(path.clone()).expect("opens");
        keys.put("one", &hash("a"), false).await.expect("is new");
        // It is polled once, and given up while the disk is waited for.
        let _ = tokio::time::timeout(std::time::Duration::ZERO, keys.remove("one")).await;
        keys.put("two", &hash("b"), false).await.expect("comes behind it");
        assert_eq!(
            (keys.names(), AgentKeys::open(path).expect("opens").names()),
            (vec!["two".to_owned()], vec!["two".to_owned()])
        );
    }
}

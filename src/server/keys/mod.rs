//! The keys of those who submit and look after jobs: each has a name and a role, is shown once, and is kept as a hash in one small
//! file. The key in `admin.key` is one of them too, called `admin`; it is made by whoever starts the server.
//!
//! Owns that file. Decides nothing about jobs; what a role may do is said in [`super::auth`].

mod routes;

pub(super) use routes::for_people;

use super::limits::KeyLimits;
use super::{kept, same_hash};
use crate::job::{Millis, Submitter, UnixMillis};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use utoipa::ToSchema;

/// The name of the key in `admin.key`.
pub const ADMIN: &str = crate::queue::FIRST_SUBMITTER;
/// Keys that there can be. A file of so many is still a small one.
const MOST: usize = 10_000;
/// How long an old key can be good beside the new one: long enough for a change that waits for the next release.
const LONGEST_OVERLAP: Millis = Millis::from_secs(30 * 24 * 3600);

/// Older secrets of a key that can be good at a time.
const MOST_BEFORE: usize = 8;
const NO_TIME: Millis = Millis::from_secs(0);

/// What a key may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything but keys and the audit log.
    Read,
    /// Submit jobs; cancel, and run again, those of its own.
    Submit,
    /// Everything.
    Admin,
}

impl Role {
    /// The name in requests and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }
}

/// Who sent a request; put there by the middleware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Which key of that name it is; none for the one in `admin.key`, and for keys of before they had one.
    id: Option<String>,
    /// What the operator says of it; the rest is as the settings have it.
    pub(super) limits: KeyLimits,
}

impl Caller {
    /// As jobs keep it.
    pub(super) fn submitter(&self) -> Submitter {
        Submitter { name: self.name.clone(), key: self.id.clone() }
    }
}

/// By which key a request came in, for what outlives the request: a stream goes on only as long as its key opens something.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    sha256: String,
}

impl Pass {
    /// Of a key, whatever it opens.
    pub(super) fn of(key: &str) -> Self {
        Self { sha256: hash(key) }
    }
}

/// Why a key opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closed {
    /// There is no such key.
    Unknown,
    /// Its time is over, since then.
    Expired { name: String, since: UnixMillis },
}

/// Why a key was not made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum UserKeyError {
    /// The name cannot be one.
    #[error("`{0}` is not a key's name: use 1 to 63 letters, digits and - _ .")]
    BadName(String),
    /// There is one of that name.
    #[error("there is a key `{0}` already; give it another secret with `jobcell keys rotate {0}`, or remove it first")]
    Exists(String),
    /// It is the one in `admin.key`.
    #[error(
        "the key `{ADMIN}` is the one in the data directory's admin.key; to change it, remove that file and start the server again"
    )]
    Fixed,
    /// There is none of that name.
    #[error("no key is called `{0}`")]
    Unknown(String),
    /// There are too many.
    #[error("there are {MOST} keys; remove some first")]
    Full,
    /// Its time is over, and another secret would not change that.
    #[error("the key `{0}` has expired; remove it and make another one")]
    Expired(String),
    /// Too many old keys are good still.
    #[error("{MOST_BEFORE} older secrets of `{0}` are good still; wait until one of them ends, or remove the key")]
    TooMany(String),
    /// A limit that is none.
    #[error("rate: 0 to 1000000, burst: 1 to 1000000, jobs: 0 to 100000000; what is left out is as the settings say")]
    BadLimits,
    /// The old key would stay for too long.
    #[error("an old key is good for 30 days at most beside the new one")]
    TooLong,
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
    /// Told from other keys of this name, before it and after it. Another secret makes no other key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    role: Role,
    sha256: String,
    made_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<UnixMillis>,
    /// Those before it that may be good still, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    before: Vec<Old>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<KeyLimits>,
    /// The one before it in files of before there could be several.
    #[serde(default, skip_serializing)]
    old: Option<Old>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Old {
    sha256: String,
    until: UnixMillis,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    name: String,
    role: Role,
    made_at: Option<UnixMillis>,
    expires_at: Option<UnixMillis>,
    old_until: Option<UnixMillis>,
    limits: KeyLimits,
}

/// All keys.
#[derive(Debug)]
pub struct UserKeys {
    path: PathBuf,
    admin: String,
    kept: Arc<Mutex<BTreeMap<String, Kept>>>,
    /// Held by whoever changes the file: requests that look a key up do not wait for a disk.
    changing: Arc<tokio::sync::Mutex<()>>,
    changed: watch::Sender<()>,
}

fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fresh() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    format!("jck_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl UserKeys {
    /// Reads the file; one that is not there has no keys. `admin` is the key of that name. Errors: it cannot be read.
    pub fn open(path: PathBuf, admin: &str) -> Result<Self, UserKeyError> {
        let kept = kept::read(&path).map_err(|reason| UserKeyError::File { path: path.clone(), reason })?;
        let mut kept: BTreeMap<String, Kept> = kept;
        kept.values_mut().for_each(|one| one.before.extend(one.old.take()));
        let (changing, changed) = (Arc::default(), watch::Sender::new(()));
        Ok(Self { path, admin: hash(admin), kept: Arc::new(Mutex::new(kept)), changing, changed })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key. It is not kept: only its hash is.
    pub(super) async fn add(
        &self,
        name: &str,
        role: Role,
        expires_in: Option<Millis>,
        now: UnixMillis,
    ) -> Result<String, UserKeyError> {
        let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 63 || !name.bytes().all(grammar) {
            return Err(UserKeyError::BadName(name.chars().take(64).flat_map(char::escape_debug).collect()));
        }
        self.change(name, |keys| {
            if keys.contains_key(name) {
                return Err(UserKeyError::Exists(name.to_owned()));
            }
            if keys.len() >= MOST {
                return Err(UserKeyError::Full);
            }
            let key = fresh();
            let expires_at = expires_in.map(|term| now.plus(term));
            keys.insert(
                name.to_owned(),
                Kept {
                    id: Some(uuid::Uuid::new_v4().simple().to_string()),
                    role,
                    sha256: hash(&key),
                    made_at: now,
                    expires_at,
                    before: Vec::new(),
                    limits: None,
                    old: None,
                },
            );
            Ok(key)
        })
        .await
    }

    /// Gives a key another secret; the old one stays good for `overlap`. What it may do and until when stays as it is.
    pub(super) async fn rotate(&self, name: &str, overlap: Millis, now: UnixMillis) -> Result<String, UserKeyError> {
        if overlap > LONGEST_OVERLAP {
            return Err(UserKeyError::TooLong);
        }
        self.change(name, |keys| {
            let kept = keys.get_mut(name).ok_or_else(|| UserKeyError::Unknown(name.to_owned()))?;
            if kept.expires_at.is_some_and(|end| end <= now) {
                return Err(UserKeyError::Expired(name.to_owned()));
            }
            let key = fresh();
            let old = Old { sha256: std::mem::replace(&mut kept.sha256, hash(&key)), until: now.plus(overlap) };
            // A rotation that leaves no time is one of a secret that got out: it is for all of them.
            let before = std::mem::take(&mut kept.before);
            kept.before = [old].into_iter().chain(before).filter(|one| overlap > NO_TIME && one.until > now).collect();
            if kept.before.len() > MOST_BEFORE {
                return Err(UserKeyError::TooMany(name.to_owned()));
            }
            kept.made_at = now;
            Ok(key)
        })
        .await
    }

    /// Says how much a key may do, from now on.
    pub(super) async fn limit(&self, name: &str, limits: KeyLimits) -> Result<(), UserKeyError> {
        if !limits.are_good() {
            return Err(UserKeyError::BadLimits);
        }
        self.change(name, |keys| {
            let kept = keys.get_mut(name).ok_or_else(|| UserKeyError::Unknown(name.to_owned()))?;
            kept.limits = Some(limits).filter(|limits| *limits != KeyLimits::default());
            Ok(())
        })
        .await
    }

    /// Takes a key away: it opens nothing from now on.
    pub(super) async fn remove(&self, name: &str) -> Result<(), UserKeyError> {
        let unknown = || UserKeyError::Unknown(name.to_owned());
        self.change(name, |keys| keys.remove(name).map(drop).ok_or_else(unknown)).await
    }

    /// Tells of every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whose key this is. What is compared are hashes, so timing tells nothing about the key.
    pub(super) fn caller(&self, pass: &Pass, now: UnixMillis) -> Result<Caller, Closed> {
        let given = &pass.sha256;
        if same_hash(given, &self.admin) {
            // Whoever looks after all this gets in, whatever others do with their keys.
            let limits = KeyLimits { rate: Some(0), burst: None, jobs: Some(0) };
            return Ok(Caller { name: ADMIN.to_owned(), role: Role::Admin, id: None, limits });
        }
        let kept = self.kept();
        let mut expired = Closed::Unknown;
        for (name, one) in kept.iter() {
            let until = match one.before.iter().find(|old| same_hash(&old.sha256, given)) {
                _ if same_hash(&one.sha256, given) => one.expires_at,
                Some(old) => Some(one.expires_at.map_or(old.until, |end| end.min(old.until))),
                None => continue,
            };
            match until.filter(|until| *until <= now) {
                None => {
                    let limits = one.limits.unwrap_or_default();
                    return Ok(Caller { name: name.clone(), role: one.role, id: one.id.clone(), limits });
                }
                Some(since) => expired = Closed::Expired { name: name.clone(), since },
            }
        }
        Err(expired)
    }

    /// All of them, by name.
    pub(super) fn list(&self, now: UnixMillis) -> Vec<Entry> {
        let admin = Entry {
            name: ADMIN.to_owned(),
            role: Role::Admin,
            made_at: None,
            expires_at: None,
            old_until: None,
            limits: KeyLimits::default(),
        };
        let entry = |(name, kept): (&String, &Kept)| Entry {
            name: name.clone(),
            role: kept.role,
            made_at: Some(kept.made_at),
            expires_at: kept.expires_at,
            old_until: kept.before.iter().map(|old| old.until).filter(|until| *until > now).max(),
            limits: kept.limits.unwrap_or_default(),
        };
        let mut all: Vec<Entry> = self.kept().iter().map(entry).chain([admin]).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Changes the file, and what is known of it only when that worked. Goes on when the caller is dropped: what is written is what opens doors.
    async fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, Kept>) -> Result<T, UserKeyError>,
    ) -> Result<T, UserKeyError> {
        if name == ADMIN {
            return Err(UserKeyError::Fixed);
        }
        let alone = Arc::clone(&self.changing).lock_owned().await;
        let mut with = self.kept().clone();
        let changed = change(&mut with)?;
        let (path, kept, tell) = (self.path.clone(), Arc::clone(&self.kept), self.changed.clone());
        let written = crate::supervise::spawn("keys", async move {
            let _alone = alone;
            let with = crate::supervise::blocking(move || kept::write(&path, &with).map(|()| with)).await?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = with;
            tell.send_replace(());
            Ok(())
        });
        let written = written.await.unwrap_or_else(|_| Err("it was not written".to_owned()));
        written.map_err(|reason| UserKeyError::File { path: self.path.clone(), reason })?;
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn at(seconds: u64) -> UnixMillis {
        UnixMillis::new(seconds * 1000)
    }

    fn who(keys: &UserKeys, key: &str, now: UnixMillis) -> Result<Caller, Closed> {
        keys.caller(&Pass::of(key), now).map(|caller| Caller { id: None, limits: KeyLimits::default(), ..caller })
    }

    fn caller(name: &str, role: Role) -> Result<Caller, Closed> {
        Ok(Caller { name: name.to_owned(), role, id: None, limits: KeyLimits::default() })
    }

    #[tokio::test]
    async fn a_change_whose_caller_is_gone_is_made_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.json");
        let keys = UserKeys::open(path.clone(), "jck_admin").expect("opens");
        keys.add("ci", Role::Submit, None, at(0)).await.expect("is new");
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = keys.remove("ci") => {}
                // It has begun, and whoever asked for it hangs up.
                () = std::future::ready(()) => {}
            }
            drop(keys.changing.lock().await);
            assert!(!keys.kept().contains_key("ci"), "it opens nothing any more");
            assert!(!std::fs::read_to_string(&path).expect("reads").contains("\"ci\""));
            keys.add("ci", Role::Submit, None, at(0)).await.expect("is gone, so it is new");
        }
    }

    #[tokio::test]
    async fn a_key_that_gets_a_name_again_is_another_one_and_a_rotation_makes_no_other() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = UserKeys::open(dir.path().join("keys.json"), "x").expect("opens");
        let submitter = |keys: &UserKeys, key: &str| keys.caller(&Pass::of(key), at(1)).expect("opens").submitter();
        let first = keys.add("ci", Role::Submit, None, at(0)).await.expect("is new");
        let was = submitter(&keys, &first);
        let rotated = keys.rotate("ci", Millis::from_secs(10), at(0)).await.expect("is there");
        assert_eq!((submitter(&keys, &rotated), submitter(&keys, &first)), (was.clone(), was.clone()));
        let again = UserKeys::open(dir.path().join("keys.json"), "x").expect("opens");
        assert_eq!(submitter(&again, &rotated), was);
        keys.remove("ci").await.expect("is there");
        let second = keys.add("ci", Role::Submit, None, at(0)).await.expect("is new");
        let is = submitter(&keys, &second);
        assert!(is.name == was.name && is != was, "{is:?}");
    }

    #[tokio::test]
    async fn a_file_of_before_there_were_several_old_secrets_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.json");
        let (new, old) = (hash("jck_new"), hash("jck_old"));
        let text = format!(
            r#"{{"ci": {{"role": "submit", "sha256": "{new}", "made_at": 0, "old": {{"sha256": "{old}", "until": 10000}}}}}}"#
        );
        std::fs::write(&path, text).expect("writes");
        let keys = UserKeys::open(path.clone(), "x").expect("opens");
        keys.add("web", Role::Read, None, at(0)).await.expect("is new");
        for keys in [keys, UserKeys::open(path, "x").expect("opens again")] {
            assert_eq!(who(&keys, "jck_old", at(9)), caller("ci", Role::Submit));
            assert_eq!(who(&keys, "jck_new", at(99)), caller("ci", Role::Submit));
            assert!(matches!(who(&keys, "jck_old", at(10)), Err(Closed::Expired { .. })));
        }
    }

    #[tokio::test]
    async fn a_key_opens_until_it_is_removed_or_over_and_its_file_is_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.json");
        let keys = UserKeys::open(path.clone(), "the admin's").expect("opens");
        let ci = keys.add("ci", Role::Submit, Some(Millis::from_secs(60)), at(0)).await.expect("is new");
        let web = keys.add("web", Role::Read, None, at(0)).await.expect("is new");
        assert!(matches!(keys.add("ci", Role::Read, None, at(0)).await, Err(UserKeyError::Exists(_))));
        for bad in ["", "a/b", "a b", "ключ", &"x".repeat(64)] {
            assert!(matches!(keys.add(bad, Role::Read, None, at(0)).await, Err(UserKeyError::BadName(_))), "{bad:?}");
        }
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(!text.contains(&ci[4..]) && !text.contains("the admin's"), "no key itself is anywhere");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let again = UserKeys::open(path, "the admin's").expect("opens again");
        assert_eq!(who(&again, &ci, at(59)), caller("ci", Role::Submit));
        assert_eq!(who(&again, &ci, at(60)), Err(Closed::Expired { name: "ci".into(), since: at(60) }));
        assert_eq!(who(&again, "the admin's", at(60)), caller(ADMIN, Role::Admin));
        assert_eq!(
            (who(&again, "", at(0)), who(&again, "jck_00", at(0))),
            (Err(Closed::Unknown), Err(Closed::Unknown))
        );
        again.remove("web").await.expect("is there");
        assert_eq!(who(&again, &web, at(1)), Err(Closed::Unknown));
        assert!(matches!(again.remove("web").await, Err(UserKeyError::Unknown(_))));
        let names: Vec<String> = again.list(at(0)).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, [ADMIN, "ci"]);
    }

    #[tokio::test]
    async fn the_admins_key_is_not_changed_here() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = UserKeys::open(dir.path().join("keys.json"), "x").expect("opens");
        assert!(matches!(keys.add(ADMIN, Role::Read, None, at(0)).await, Err(UserKeyError::Fixed)));
        assert!(matches!(keys.rotate(ADMIN, Millis::from_secs(0), at(0)).await, Err(UserKeyError::Fixed)));
        assert!(matches!(keys.remove(ADMIN).await, Err(UserKeyError::Fixed)));
    }

    #[tokio::test]
    async fn after_a_rotation_the_old_one_is_good_for_a_while_and_never_longer_than_the_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = UserKeys::open(dir.path().join("keys.json"), "x").expect("opens");
        let first = keys.add("ci", Role::Submit, Some(Millis::from_secs(100)), at(0)).await.expect("is new");
        let second = keys.rotate("ci", Millis::from_secs(10), at(5)).await.expect("is there");
        assert_eq!(who(&keys, &first, at(14)), caller("ci", Role::Submit));
        assert_eq!(who(&keys, &first, at(15)), Err(Closed::Expired { name: "ci".into(), since: at(15) }));
        assert_eq!(who(&keys, &second, at(15)), caller("ci", Role::Submit));
        let third = keys.rotate("ci", Millis::from_secs(1000), at(20)).await.expect("is there");
        assert_eq!(who(&keys, &first, at(20)), Err(Closed::Unknown), "what is over is forgotten");
        assert_eq!(who(&keys, &second, at(99)), caller("ci", Role::Submit));
        assert_eq!(who(&keys, &second, at(100)), Err(Closed::Expired { name: "ci".into(), since: at(100) }));
        // Another rotation takes nothing back of what the last one has promised.
        let fourth = keys.rotate("ci", Millis::from_secs(1), at(25)).await.expect("is there");
        assert_eq!(keys.list(at(25))[1].old_until, Some(at(1020)));
        for key in [&second, &third, &fourth] {
            assert_eq!(who(&keys, key, at(25)), caller("ci", Role::Submit));
        }
        let last = keys.rotate("ci", Millis::from_secs(0), at(30)).await.expect("is there");
        for key in [&second, &third, &fourth] {
            assert_eq!(who(&keys, key, at(30)), Err(Closed::Unknown), "it may be known to whoever should not");
        }
        assert_eq!(who(&keys, &last, at(30)), caller("ci", Role::Submit));
        for _ in 0..MOST_BEFORE {
            keys.rotate("ci", Millis::from_secs(50), at(31)).await.expect("is there");
        }
        let more = keys.rotate("ci", Millis::from_secs(50), at(31)).await;
        assert!(matches!(more, Err(UserKeyError::TooMany(_))));
        assert!(matches!(keys.rotate("ci", NO_TIME, at(100)).await, Err(UserKeyError::Expired(_))));
        assert!(matches!(
            keys.rotate("ci", Millis::from_secs(40 * 24 * 3600), at(30)).await,
            Err(UserKeyError::TooLong)
        ));
    }
}

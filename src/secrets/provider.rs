//! Where an agent has its secrets from. Each is read when a job needs it, so that a new value is used without a restart.

use crate::config::SecretConfig;
use crate::job::{Cause, JobSpec, SECRETS_BYTES, Secret, SecretSource};
use crate::protocol::wire;
use crate::supervise;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A provider that takes longer has failed: its job goes to another try, and its slot to another job.
const DEADLINE: Duration = Duration::from_secs(5);
/// Threads that read one secret. More jobs wait, within the deadline.
const READERS: usize = 4;
/// Where systemd says that credentials are.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Has one secret.
pub trait Provider: Send + Sync + std::fmt::Debug + 'static {
    /// What it is at the moment. May take its time, and runs apart from everything else. Errors: why it cannot be had, in words that have
    /// nothing of it.
    fn read(&self) -> Result<Secret, String>;
}

/// The providers that come with the product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A variable of this process.
    Env(String),
    /// A file.
    File(PathBuf),
    /// A credential that systemd gave this service.
    Credential(String),
}

impl Provider for Source {
    fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Env(name) => match std::env::var_os(name) {
                Some(value) => Ok(Secret::new(value.into_vec())),
                None => Err(format!("the agent has no variable {name}")),
            },
            Self::File(path) => read_file(path),
            Self::Credential(name) => match std::env::var_os(CREDENTIALS) {
                Some(folder) => read_file(&Path::new(&folder).join(name)),
                None => Err(format!("the agent was started without credentials: {CREDENTIALS} is not set")),
            },
        }
    }
}

fn read_file(path: &Path) -> Result<Secret, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    // A FIFO without a writer would be waited for.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    let known = file.metadata().map_err(failed)?;
    if !known.is_file() {
        return Err(format!("{}: is no regular file", path.display()));
    }
    if known.len() > SECRETS_BYTES as u64 {
        return Err(format!("{}: has {} bytes; at most {SECRETS_BYTES} are taken", path.display(), known.len()));
    }
    // In one piece from the beginning: a buffer that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(SECRETS_BYTES + 1);
    file.take(SECRETS_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Secret::new(bytes))
}

/// The secrets that jobs can ask an agent for, by name.
#[derive(Debug, Clone, Default)]
pub struct Providers(BTreeMap<String, Kept>);

#[derive(Debug, Clone)]
struct Kept {
    provider: Arc<dyn Provider>,
    /// Places for those who read it.
    places: Arc<Semaphore>,
}

impl Kept {
    fn new(provider: Arc<dyn Provider>) -> Self {
        Self { provider, places: Arc::new(Semaphore::new(READERS)) }
    }
}

impl Providers {
    /// Those of the settings.
    pub fn of(settings: &BTreeMap<String, SecretConfig>) -> Self {
        let one = |(name, secret): (&String, &SecretConfig)| {
            let source = match secret {
                SecretConfig::Env(name) => Source::Env(name.clone()),
                SecretConfig::File(path) => Source::File(path.clone()),
                SecretConfig::Credential(name) => Source::Credential(name.clone()),
            };
            (name.clone(), Kept::new(Arc::new(source)))
        };
        Self(settings.iter().map(one).collect())
    }

    /// The same with one more.
    #[must_use]
    pub fn with(mut self, name: &str, provider: impl Provider) -> Self {
        self.0.insert(name.to_owned(), Kept::new(Arc::new(provider)));
        self
    }

    /// Everything that a job is to be given, as its warden is told. Errors: the cause that its try ends with.
    pub async fn fetch(&self, spec: &JobSpec) -> Result<Vec<wire::Secret>, Cause> {
        let mut all = Vec::with_capacity(spec.secrets().len());
        let mut bytes = 0;
        for (name, ask) in spec.secrets() {
            let missing = |reason: String| Cause::SecretMissing { secret: name.clone(), reason };
            let value = match &ask.source {
                SecretSource::Inline => spec.secret(name).cloned().ok_or_else(|| {
                    missing("its value came with the job, and the backend could not hand it on".to_owned())
                })?,
                SecretSource::Named(from) => {
                    let reason = |why: String| missing(format!("`{from}` of the agent {why}"));
                    let provider = self.0.get(from).ok_or_else(|| reason("does not exist".to_owned()))?;
                    read(provider.clone()).await.map_err(|why| reason(format!("cannot be had: {why}")))?
                }
            };
            if let Some((why, fix)) = value.unfit(ask.file) {
                return Err(missing(format!("it {why}; {fix}")));
            }
            bytes += value.expose().len();
            if bytes > SECRETS_BYTES {
                return Err(missing(format!("with it the job's secrets have more than {SECRETS_BYTES} bytes")));
            }
            let value = if ask.file { value.expose() } else { value.as_variable() };
            all.push(wire::Secret { name: name.clone(), value: value.to_vec(), file: ask.file });
        }
        Ok(all)
    }
}

async fn read(kept: Kept) -> Result<Secret, String> {
    // One that hangs keeps its thread, and its place: there are threads for the others.
    let read = async {
        let place = kept.places.acquire_owned().await.expect("it is never closed");
        supervise::blocking(move || {
            let _place = place;
            kept.provider.read()
        })
        .await
    };
    match tokio::time::timeout(DEADLINE, read).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;
    use serde_json::json;

    #[derive(Debug)]
    struct Fixed(&'static [u8]);

    impl Provider for Fixed {
        fn read(&self) -> Result<Secret, String> {
            Ok(Secret::new(self.0.to_vec()))
        }
    }

    fn spec(secrets: &serde_json::Value) -> JobSpec {
        let document = json!({"image": "x", "command": ["x"], "secrets": secrets});
        JobSpec::check(&document, &SpecRules::default()).expect("valid")
    }

    #[tokio::test]
    async fn what_is_in_place_at_the_moment_is_given() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        let providers = Providers::default().with("key", Source::File(file.clone())).with("fixed", Fixed(b"hunter2\n"));
        let asked = json!({"A": "fixed", "B": {"from": "key", "as": "file"}, "C": {"value": "inline-value"}});
        let spec = spec(&asked);
        for value in ["first-value\n", "second-value\n"] {
            std::fs::write(&file, value).expect("writes");
            let given = providers.fetch(&spec).await.expect("there");
            let given: Vec<_> = given.iter().map(|one| (one.name.as_str(), &one.value[..], one.file)).collect();
            let wanted =
                [("A", &b"hunter2"[..], false), ("B", value.as_bytes(), true), ("C", &b"inline-value"[..], false)];
            assert_eq!(given, wanted);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_had_ends_the_try_with_a_reason_that_has_nothing_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let (fifo, large) = (dir.path().join("fifo"), dir.path().join("large"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a FIFO");
        std::fs::write(&large, vec![b'x'; SECRETS_BYTES + 1]).expect("writes");
        let providers = Providers::default()
            .with("fifo", Source::File(fifo))
            .with("large", Source::File(large))
            .with("folder", Source::File(dir.path().to_owned()))
            .with("gone", Source::File(dir.path().join("gone")))
            .with("unset", Source::Env("JOBCELL_TEST_NO_SUCH_VARIABLE".to_owned()))
            .with("short", Fixed(b"12345"))
            .with("nul", Fixed(b"hunter2\0"))
            .with("half", Fixed(&[b'x'; SECRETS_BYTES / 2 + 1]));
        for (asked, wanted) in [
            (json!({"A": "fifo"}), "is no regular file"),
            (json!({"A": "folder"}), "is no regular file"),
            (json!({"A": "large"}), "has 65537 bytes"),
            (json!({"A": "gone"}), "`gone` of the agent cannot be had: "),
            (json!({"A": "unset"}), "has no variable"),
            (json!({"A": "unknown"}), "`unknown` of the agent does not exist"),
            (json!({"A": "short"}), "it has 5 bytes, and fewer than 6 cannot be masked"),
            (json!({"A": "nul"}), "has a NUL byte"),
            (json!({"A": "half", "B": "half"}), "more than 65536 bytes"),
        ] {
            let cause = providers.fetch(&spec(&asked)).await.expect_err("cannot be had");
            let said = cause.to_string();
            assert!(matches!(cause, Cause::SecretMissing { .. }) && said.contains(wanted), "{said}");
            assert!(!said.contains("12345") && !said.contains("hunter2"), "{said}");
        }
        let mut lost = spec(&json!({"A": {"value": "hunter2"}}));
        lost.forget_secrets();
        let said = providers.fetch(&lost).await.expect_err("is gone").to_string();
        assert!(said.contains("secret `A`") && said.contains("could not hand it on"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_not_waited_for() {
        #[derive(Debug)]
        struct Hangs(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);
        impl Provider for Hangs {
            fn read(&self) -> Result<Secret, String> {
                let _ = self.0.lock().expect("nobody panics").recv();
                Err("it was let go".to_owned())
            }
        }
        let (let_go, hangs) = std::sync::mpsc::sync_channel(1);
        let providers =
            Providers::default().with("slow", Hangs(std::sync::Mutex::new(hangs))).with("quick", Fixed(b"hunter2"));
        let asked = spec(&json!({"A": "slow"}));
        for round in 0..READERS + 2 {
            // The clock stands still while a thread works, so it is moved by hand.
            let (fetched, asked) = (providers.clone(), asked.clone());
            let fetch = supervise::spawn("fetch", async move { fetched.fetch(&asked).await });
            tokio::task::yield_now().await;
            tokio::time::advance(DEADLINE + Duration::from_millis(1)).await;
            let said = fetch.await.expect("no panic").expect_err("is not waited for").to_string();
            assert!(said.contains("no answer within 5 s"), "{said}");
            let threads = READERS - providers.0["slow"].places.available_permits();
            assert_eq!(threads, (round + 1).min(READERS), "each of them keeps one, up to the bound");
        }
        providers.fetch(&spec(&json!({"A": "quick"}))).await.expect("is another one");
        drop(let_go);
    }
}

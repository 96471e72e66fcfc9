//! An agent's way in: the key that its settings name, the one that it has made itself, or a join token with which that one is made known.
//!
//! The key is written down before it is sent anywhere, and only its hash is sent. So a process that dies between the two asks again with the
//! same key and the same token, and is let in.

use super::home::Home;
use super::{Failure, given_key};
use crate::config::operator_file::Whose;
use crate::config::{BackendConfig, Config};
use crate::protocol::agent::{Enroll, Enrolled};
use crate::tls::{self, ClientTls};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One try.
const LIMIT: Duration = Duration::from_secs(10);
/// For a server that is about to start.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(2);
/// A key, a token, with what is around it.
const LONGEST: u64 = 4096;

/// The agent's key for a backend. Errors: there is none, and none can be had.
pub(super) async fn key(
    name: &str,
    backend: &BackendConfig,
    config: &Config,
    home: &Home,
    tls: &ClientTls,
) -> Result<String, Failure> {
    let bad = |reason: String| Failure::config(format!("backends.{name}{reason}"));
    if let Some(file) = &backend.key_file {
        let key = given_key::of_file(file, Whose::Kept).map_err(|reason| bad(format!(".key_file: {reason}")))?;
        return good(name, key);
    }
    if let Some(key) = given_key::AGENT.read().map_err(Failure::config)?.filter(|key| !key.is_empty()) {
        return good(name, key);
    }
    let (own, fresh) = files(home, name);
    match read(&own) {
        Ok(key) => return good(name, key),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::unavailable(format!("{}: {error}", own.display())));
        }
        Err(_) => {}
    }
    let token = match &backend.token_file {
        Some(file) => given_key::of_file(file, Whose::Kept).map_err(|reason| bad(format!(".token_file: {reason}")))?,
        None => given_key::JOIN.read().map_err(Failure::config)?.unwrap_or_default(),
    };
    // Without one it hears what else there is.
    if token.is_empty() {
        return good(name, String::new());
    }
    let key = made(&fresh).map_err(|error| Failure::unavailable(format!("{}: {error}", fresh.display())))?;
    let asked = Enroll { token, name: config.agent.name.clone(), key_sha256: hash(&key) };
    let agent = enroll(name, &backend.url, &asked, tls).await?;
    std::fs::rename(&fresh, &own).map_err(|error| Failure::unavailable(format!("{}: {error}", own.display())))?;
    tracing::info!(backend = name, %agent, "enrolled: the join token is used, the key is this agent's own");
    good(name, key)
}

/// Where its own key lies, and where one lies that the backend may not know yet.
fn files(home: &Home, name: &str) -> (PathBuf, PathBuf) {
    // Names of backends are free; those of files are not.
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c.to_string() } else { format!("%{:x}", u32::from(c)) }
    };
    let name: String = name.chars().map(safe).collect();
    (home.path(&format!("agent-{name}.key")), home.path(&format!("agent-{name}.key.new")))
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

fn good(name: &str, key: String) -> Result<String, Failure> {
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Failure::config(format!(
            "backends.{name}: no key: give a join token in JOBCELL_JOIN_TOKEN or token_file (`jobcell agents token create` at the server \
             makes one), or a key in key_file, JOBCELL_AGENT_KEY, a file that JOBCELL_AGENT_KEY_FILE names, or the credential jobcell-agent-key \
             (`jobcell agents add NAME`)"
        )));
    }
    Ok(key)
}

/// The key of a try that did not come to its end, or a new one; on disk when this returns.
fn made(path: &Path) -> std::io::Result<String> {
    if let Ok(key) = read(path)
        && key.len() == 68
        && key.starts_with("jca_")
    {
        return Ok(key);
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    let key = format!("jca_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(key.as_bytes()).and_then(|()| file.sync_all())?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(key)
}

fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks until it is answered; gives the name that the agent has there. Errors: it is refused, or nobody answers for a minute.
async fn enroll(name: &str, url: &str, asked: &Enroll, tls: &ClientTls) -> Result<String, Failure> {
    // The token goes nowhere else.
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(LIMIT);
    let http = http.tls_backend_preconfigured(tls.config()).build();
    let http = http.map_err(|error| Failure::new(format!("no HTTP client: {error}")))?;
    let until = Instant::now() + PATIENCE;
    loop {
        let reason = match http.post(format!("{url}/v1/agent/enroll")).json(asked).send().await {
            Ok(answer) if answer.status().is_success() => {
                let enrolled = answer.json::<Enrolled>().await;
                return enrolled.map(|enrolled| enrolled.agent).map_err(|error| {
                    Failure::unavailable(format!(
                        "backends.{name}: the answer to the join token is not understood: {error}"
                    ))
                });
            }
            Ok(answer) => {
                let status = answer.status();
                let document: serde_json::Value = answer.json().await.unwrap_or_default();
                let detail =
                    super::show::printable(document["detail"].as_str().unwrap_or("no jobcell server is there"));
                if status.is_client_error() && status.as_u16() != 429 {
                    return Err(Failure::config(format!(
                        "backends.{name}: {url} does not let this agent in: {detail}"
                    )));
                }
                format!("it answered {status}: {detail}")
            }
            Err(error) => tls::reason(&error),
        };
        if Instant::now() >= until {
            return Err(Failure::unavailable(format!("backends.{name}: {url} does not take the join token: {reason}")));
        }
        tracing::warn!(backend = name, reason, "the join token could not be used yet; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

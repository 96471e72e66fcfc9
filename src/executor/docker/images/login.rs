//! Logins at registries: from the settings, from a file as `docker login` writes it, from credential helpers. Read again for each pull, so
//! that a rotated one counts at once; kept nowhere, shown nowhere.

use crate::config::{PasswordSource, RegistryLogin};
use crate::job::DEFAULT_REGISTRY;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// A helper that takes longer is ended, and the pull with it.
const HELPER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a password's or a login file, and of what a helper says.
const MOST: u64 = 1 << 20;
/// Where Docker keeps its logins for its default registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// With this user, a helper's secret is a token.
const TOKEN_USER: &str = "<token>";

/// Where logins are.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    /// By the registry's host.
    pub registries: BTreeMap<String, RegistryLogin>,
    /// A file as `docker login` writes it, for other registries.
    pub file: Option<PathBuf>,
}

/// A login, as the engine takes it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub(super) struct Login {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    token: String,
    #[serde(rename = "serveraddress")]
    server: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Login {
    fn new(server: &str, username: String, secret: String) -> Self {
        let server = if server == DEFAULT_REGISTRY { DOCKER_HUB } else { server }.to_owned();
        match username == TOKEN_USER {
            true => Self { username: String::new(), password: String::new(), token: secret, server },
            false => Self { username, password: secret, token: String::new(), server },
        }
    }

    /// The value of the header `X-Registry-Auth`. The engine reads the alphabet of URLs.
    pub(super) fn header(&self) -> String {
        URL_SAFE.encode(serde_json::to_vec(self).expect("texts only"))
    }
}

impl Logins {
    /// The login for a registry; `None` where there is none. Errors: a sentence on what does not work, without a secret.
    pub(super) async fn find(&self, registry: &str) -> Result<Option<Login>, String> {
        if let Some(login) = self.registries.get(registry) {
            let at = |reason: String| format!("images.registries.{registry}: {reason}");
            return match login {
                RegistryLogin::Helper(name) => helper(name, registry).await.map_err(at),
                RegistryLogin::Password { username, password } => {
                    let secret = secret(password).await.map_err(at)?;
                    Ok(Some(Login::new(registry, username.clone(), secret)))
                }
            };
        }
        match &self.file {
            None => Ok(None),
            Some(file) => {
                let found = async { DockerFile::read(file).await?.find(registry).await };
                found.await.map_err(|reason| format!("images.auth_file {}: {reason}", file.display()))
            }
        }
    }
}

async fn secret(source: &PasswordSource) -> Result<String, String> {
    let text = match source {
        PasswordSource::File(file) => text(file).await?,
        PasswordSource::Variable(name) => match (std::env::var(name), std::env::var_os(format!("{name}_FILE"))) {
            (Ok(text), _) => text,
            (Err(_), Some(file)) => text(Path::new(&file)).await?,
            (Err(_), None) => return Err(format!("neither {name} nor {name}_FILE is set")),
        },
        PasswordSource::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(dir) => text(&Path::new(&dir).join(name)).await?,
            None => return Err(format!("systemd gives no credential {name}: CREDENTIALS_DIRECTORY is not set")),
        },
    };
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("the password is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

async fn text(file: &Path) -> Result<String, String> {
    let read = async {
        let mut text = String::new();
        tokio::fs::File::open(file).await?.take(MOST).read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    // A FIFO, or a file system that hangs.
    match tokio::time::timeout(HELPER_LIMIT, read).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("{}: {error}", file.display())),
        Err(_) => Err(format!("{}: not read within {HELPER_LIMIT:?}", file.display())),
    }
}

/// Docker's config.json; of it what has to do with logins.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct DockerFile {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl DockerFile {
    async fn read(file: &Path) -> Result<Self, String> {
        let text = text(file).await?;
        // Where, and not what: a piece of it may be a secret.
        serde_json::from_str(&text).map_err(|error| format!("is no JSON of Docker's: line {}", error.line()))
    }

    /// As Docker looks: a helper of the registry, then the store for all, then what lies in the file.
    async fn find(&self, registry: &str) -> Result<Option<Login>, String> {
        let names = names(registry);
        let by_name = names.iter().find_map(|name| self.cred_helpers.get(name.as_str()));
        if let Some(program) = by_name {
            return helper(program, registry).await;
        }
        if !self.creds_store.is_empty()
            && let Some(login) = helper(&self.creds_store, registry).await?
        {
            return Ok(Some(login));
        }
        let Some(auth) = names.iter().find_map(|name| self.auths.get(name.as_str())) else { return Ok(None) };
        if !auth.identitytoken.is_empty() {
            return Ok(Some(Login::new(registry, TOKEN_USER.to_owned(), auth.identitytoken.clone())));
        }
        if !auth.username.is_empty() {
            return Ok(Some(Login::new(registry, auth.username.clone(), auth.password.clone())));
        }
        if auth.auth.is_empty() {
            return Ok(None);
        }
        let plain = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = plain.as_deref().and_then(|plain| plain.split_once(':'));
        let (user, password) = pair.ok_or_else(|| format!("the login of {registry} is not base64 of user:password"))?;
        // Docker pads them.
        Ok(Some(Login::new(registry, user.to_owned(), password.trim_end_matches('\0').to_owned())))
    }
}

/// Under which a login file may have a registry.
fn names(registry: &str) -> Vec<String> {
    let mut names: Vec<String> =
        ["", "https://", "http://"].iter().map(|scheme| format!("{scheme}{registry}")).collect();
    if registry == DEFAULT_REGISTRY {
        names.extend([DOCKER_HUB, "index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    }
    names
}

/// Asks `docker-credential-NAME get`; `None` when it knows no login. What it writes to standard error is not shown.
async fn helper(name: &str, registry: &str) -> Result<Option<Login>, String> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err("the name of a credential helper has characters that no program's name has".to_owned());
    }
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| format!("{program}: {reason}");
    let asked = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
    let run = async {
        let mut command = Command::new(&program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its input says all the same how it ended.
            let _ = stdin.write_all(asked.as_bytes()).await;
        }
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MOST).read_to_string(&mut said).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, said))
    };
    let (status, said) = match tokio::time::timeout(HELPER_LIMIT, run).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("gave no answer within {HELPER_LIMIT:?}"))),
    };
    if !status.success() {
        // What the protocol of helpers says for a login that is not there.
        if said.to_ascii_lowercase().contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("failed ({status})")));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let Answer { username, secret } =
        serde_json::from_str(&said).map_err(|_| failed("its answer has no Username and Secret".to_owned()))?;
    Ok(Some(Login::new(registry, username, secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(registry: &str, user: &str, secret: &str) -> Option<Login> {
        Some(Login::new(registry, user.to_owned(), secret.to_owned()))
    }

    #[tokio::test]
    async fn a_login_file_is_read_as_docker_does() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("config.json");
        let auth = STANDARD.encode("me:pass:word");
        let text = format!(
            r#"{{"auths": {{"r.example:5000": {{"auth": "{auth}"}}, "https://index.docker.io/v1/": {{"auth": "{auth}"}},
                "t.example": {{"identitytoken": "tok"}}, "bad.example": {{"auth": "%%"}}, "empty.example": {{}}}}, "detachKeys": "x"}}"#
        );
        std::fs::write(&file, text).expect("writes");
        let logins = Logins { file: Some(file.clone()), ..Logins::default() };
        assert_eq!(logins.find("r.example:5000").await, Ok(login("r.example:5000", "me", "pass:word")));
        assert_eq!(logins.find("docker.io").await, Ok(login("docker.io", "me", "pass:word")));
        assert_eq!(logins.find("t.example").await, Ok(login("t.example", TOKEN_USER, "tok")));
        assert_eq!(logins.find("other.example").await, Ok(None));
        assert_eq!(logins.find("empty.example").await, Ok(None));
        let told = logins.find("bad.example").await.expect_err("damaged");
        assert!(told.contains("images.auth_file") && told.contains("bad.example"), "{told}");
        std::fs::write(&file, "{\"auths\": {\"r\": {\"auth\": 12345678").expect("writes");
        let told = logins.find("r.example").await.expect_err("damaged");
        assert!(told.contains("line 1") && !told.contains("12345678"), "{told}");
        std::fs::remove_file(&file).expect("removes");
        assert!(logins.find("r.example").await.is_err(), "a file that was named has to be there");
    }

    #[tokio::test]
    async fn a_password_is_read_each_time_and_never_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("password");
        let password = PasswordSource::File(file.clone());
        let known = RegistryLogin::Password { username: "me".into(), password };
        let logins = Logins { registries: BTreeMap::from([("r.example".to_owned(), known)]), file: None };
        let told = logins.find("r.example").await.expect_err("no file");
        assert!(told.contains("images.registries.r.example") && told.contains("password"), "{told}");
        for secret in ["canary-one", "canary-two"] {
            std::fs::write(&file, format!("{secret}\n")).expect("writes");
            let found = logins.find("r.example").await.expect("reads");
            assert_eq!(found, login("r.example", "me", secret));
            assert!(!format!("{found:?} {logins:?}").contains("canary"));
        }
        std::fs::write(&file, "\n").expect("writes");
        assert!(logins.find("r.example").await.expect_err("empty").contains("empty"));
    }

    #[test]
    fn the_header_is_in_the_alphabet_that_engines_read() {
        // `>` and `?` at every third place: the other alphabet would have + and / here.
        let login = login("r", "me", ">>>???~~~").expect("a login");
        let header = login.header();
        assert!(header.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)), "{header}");
        let back: serde_json::Value = serde_json::from_slice(&URL_SAFE.decode(&header).expect("base64")).expect("JSON");
        assert_eq!(back, serde_json::json!({"username": "me", "password": ">>>???~~~", "serveraddress": "r"}));
    }
}

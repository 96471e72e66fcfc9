//! Logs in on a connection whose host key is believed.

use super::credentials::Opener;
use super::handler::Client;
use crate::job::shown;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::{Fingerprint, Signature};
use russh::keys::{Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet};
use std::path::Path;
use std::sync::Arc;

/// Keys of an agent that are tried: a server hears of six at most.
const MOST_KEYS: usize = 5;

/// Why nobody is logged in.
#[derive(Debug)]
pub(super) enum NoLogin {
    /// The host refused, or cannot be asked: in words, without the host's and the login's names.
    Refused(String),
    /// The connection ended.
    Ended,
}

/// Logs in. Errors: why not.
pub(super) async fn login(handle: &mut Handle<Client>, login: &str, opener: &Opener) -> Result<(), NoLogin> {
    let result = match opener {
        Opener::Key { key, certificate } => with_key(handle, login, key, certificate.as_deref()).await?,
        Opener::Agent { socket, fingerprint } => with_agent(handle, login, socket, *fingerprint).await?,
        Opener::Password(password) => {
            let text = std::str::from_utf8(password.as_variable())
                .map_err(|_| NoLogin::Refused("the password is no text".to_owned()))?;
            with_password(handle, login, text).await?
        }
    };
    match result {
        AuthResult::Success => Ok(()),
        // This is also what a connection that ended looks like.
        AuthResult::Failure { .. } if handle.is_closed() => Err(NoLogin::Ended),
        AuthResult::Failure { remaining_methods, partial_success: true } => Err(NoLogin::Refused(format!(
            "the host took that and wants {} besides, which is not supported",
            list(&remaining_methods)
        ))),
        AuthResult::Failure { remaining_methods, .. } => Err(NoLogin::Refused(format!(
            "the host did not take it; it takes {}, so look whether the key is in authorized_keys there, and into its log",
            list(&remaining_methods)
        ))),
    }
}

fn list(methods: &MethodSet) -> String {
    let names: Vec<String> = methods.iter().map(<&'static str>::from).map(str::to_owned).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn failed(error: russh::Error) -> NoLogin {
    match error {
        russh::Error::SendError | russh::Error::RecvError | russh::Error::Disconnect => NoLogin::Ended,
        other => NoLogin::Refused(format!("it failed: {other}")),
    }
}

/// The hash that the host takes with RSA keys. Errors: it takes SHA-1 alone.
async fn rsa_hash(handle: &Handle<Client>, rsa: bool) -> Result<Option<HashAlg>, NoLogin> {
    if !rsa {
        return Ok(None);
    }
    match handle.best_supported_rsa_hash().await.map_err(failed)? {
        Some(Some(hash)) => Ok(Some(hash)),
        // One that does not say which takes what everybody does since 2016.
        None => Ok(Some(HashAlg::Sha512)),
        Some(None) => Err(NoLogin::Refused(
            "the host takes RSA keys with SHA-1 alone, which can be forged; use an ED25519 key".to_owned(),
        )),
    }
}

async fn with_key(
    handle: &mut Handle<Client>,
    login: &str,
    key: &Arc<PrivateKey>,
    certificate: Option<&Certificate>,
) -> Result<AuthResult, NoLogin> {
    let hash = rsa_hash(handle, key.algorithm().is_rsa()).await?;
    if let Some(certificate) = certificate {
        let mut signer = KeySigner(Arc::clone(key));
        let tried = handle.authenticate_certificate_with(login, certificate.clone(), hash, &mut signer).await;
        match tried.map_err(|error| failed(error.0))? {
            // The key may be known to the host by itself.
            AuthResult::Failure { remaining_methods, partial_success: false }
                if remaining_methods.contains(&MethodKind::PublicKey) => {}
            other => return Ok(other),
        }
    }
    handle.authenticate_publickey(login, PrivateKeyWithHashAlg::new(Arc::clone(key), hash)).await.map_err(failed)
}

async fn with_agent(
    handle: &mut Handle<Client>,
    login: &str,
    socket: &Path,
    fingerprint: Option<Fingerprint>,
) -> Result<AuthResult, NoLogin> {
    let told = |why: String| NoLogin::Refused(format!("the agent at {} {why}", socket.display()));
    let mut agent =
        AgentClient::connect_uds(socket).await.map_err(|error| told(format!("cannot be reached ({error})")))?;
    let keys = agent.request_identities().await.map_err(|error| told(format!("does not say its keys ({error})")))?;
    let wanted =
        |key: &AgentIdentity| fingerprint.is_none_or(|one| key.public_key().fingerprint(HashAlg::Sha256) == one);
    let keys: Vec<AgentIdentity> = keys.into_iter().filter(wanted).take(MOST_KEYS).collect();
    if keys.is_empty() {
        let which = fingerprint.map_or_else(|| "no key".to_owned(), |one| format!("no key {one}"));
        return Err(told(format!("has {which}; add it with ssh-add")));
    }
    let mut last = None;
    for key in keys {
        let hash = rsa_hash(handle, key.public_key().algorithm().is_rsa()).await?;
        let tried = match key {
            AgentIdentity::PublicKey { key, .. } => {
                handle.authenticate_publickey_with(login, key, hash, &mut agent).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                handle.authenticate_certificate_with(login, certificate, hash, &mut agent).await
            }
        };
        match tried {
            Ok(AuthResult::Failure { partial_success: false, remaining_methods }) if !handle.is_closed() => {
                last = Some(AuthResult::Failure { partial_success: false, remaining_methods });
            }
            Ok(other) => return Ok(other),
            Err(russh::AgentAuthError::Send(_)) => return Err(NoLogin::Ended),
            Err(russh::AgentAuthError::Key(error)) => return Err(told(format!("does not sign ({error})"))),
        }
    }
    last.ok_or(NoLogin::Ended)
}

async fn with_password(handle: &mut Handle<Client>, login: &str, password: &str) -> Result<AuthResult, NoLogin> {
    let tried = handle.authenticate_password(login, password).await.map_err(failed)?;
    match tried {
        AuthResult::Failure { remaining_methods, partial_success: false }
            if remaining_methods.contains(&MethodKind::KeyboardInteractive) && !handle.is_closed() =>
        {
            by_questions(handle, login, password).await
        }
        other => Ok(other),
    }
}

/// Many hosts ask for the password as a question (PAM).
async fn by_questions(handle: &mut Handle<Client>, login: &str, password: &str) -> Result<AuthResult, NoLogin> {
    use KeyboardInteractiveAuthResponse as Response;
    let mut answer = handle.authenticate_keyboard_interactive_start(login, None).await.map_err(failed)?;
    let mut given = false;
    for _ in 0..MOST_KEYS {
        let prompts = match answer {
            Response::Success => return Ok(AuthResult::Success),
            Response::Failure { remaining_methods, partial_success } => {
                return Ok(AuthResult::Failure { remaining_methods, partial_success });
            }
            Response::InfoRequest { prompts, .. } => prompts,
        };
        // The password answers one hidden question, once: anything else is asked of a person.
        let answers = match &prompts[..] {
            [] => Vec::new(),
            [one] if !one.echo && !given => {
                given = true;
                vec![password.to_owned()]
            }
            [one] if !one.echo => {
                let why = "the host asks for the password again, so it did not take it";
                return Err(NoLogin::Refused(why.to_owned()));
            }
            _ => {
                let asked: Vec<String> = prompts.iter().take(3).map(|one| shown(one.prompt.trim())).collect();
                return Err(NoLogin::Refused(format!("the host asks more than a password: {}", asked.join(", "))));
            }
        };
        answer = handle.authenticate_keyboard_interactive_respond(answers).await.map_err(failed)?;
    }
    Err(NoLogin::Refused("the host asks again and again".to_owned()))
}

/// Signs with a key, as an agent would: the one way to say the hash for a certificate's RSA key.
struct KeySigner(Arc<PrivateKey>);

/// Why there is no signature.
struct NoSignature(russh::Error);

impl From<russh::SendError> for NoSignature {
    fn from(_: russh::SendError) -> Self {
        Self(russh::Error::SendError)
    }
}

impl russh::Signer for KeySigner {
    type Error = NoSignature;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, Self::Error> {
        use russh::keys::signature::Signer;
        use russh::keys::ssh_encoding::Encode;
        let key = self.0.key_data();
        let signature: Signature = match key.rsa() {
            Some(rsa) => (rsa, hash).try_sign(&to_sign),
            None => self.0.try_sign(&to_sign),
        }
        .map_err(|error| NoSignature(error.into()))?;
        let mut bytes = Vec::new();
        signature.encode(&mut bytes).map_err(|error| NoSignature(error.into()))?;
        bytes.encode(&mut to_sign).map_err(|error| NoSignature(error.into()))?;
        Ok(to_sign)
    }
}

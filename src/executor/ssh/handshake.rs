//! From a byte stream to a host that is believed and lets this login in.

use super::algorithms::{client_config, preferred, with_keys};
use super::credentials::Opener;
use super::error::ConnectError;
use super::handler::{Client, Ending, Lost, Trust, Verdict, shown_key};
use super::known::{Asked, Distrust, KnownHosts, all_types};
use super::login::{NoLogin, login};
use super::route::Route;
use russh::client::{self, Handle};
use russh::keys::Algorithm;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// A connection on which channels can be opened.
pub(super) struct Opened {
    pub(super) handle: Handle<Client>,
    pub(super) lost: watch::Receiver<Lost>,
}

/// Why a try came to nothing.
#[derive(Debug)]
pub(super) enum Failed {
    /// On the way to the host.
    Way(ConnectError),
    /// For good, or until somebody does something.
    Permanent(ConnectError),
    /// The host cut the connection before it knew who it was: it has too many of them.
    Throttled(String),
    /// It does not speak.
    Unreachable(String),
    /// The host has the key under another type: to be asked again for one of these.
    OtherKey(Vec<Algorithm>),
}

/// What a handshake is done with.
pub(super) struct Terms<'a> {
    pub(super) route: &'a Route,
    pub(super) known: Arc<KnownHosts>,
    pub(super) asked: Asked,
    pub(super) opener: &'a Opener,
    pub(super) keepalive: Duration,
    /// Types of host keys to ask for, in place of the usual.
    pub(super) only: Option<Vec<Algorithm>>,
}

/// Does a handshake and logs in. The caller has the deadline. Errors: why not, in a class that says what to do next.
pub(super) async fn handshake<S>(terms: Terms<'_>, stream: S) -> Result<Opened, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Terms { route, known, asked, opener, keepalive, only } = terms;
    let wanted = match only {
        Some(only) => with_keys(only, Vec::new()),
        None => preferred(&known.types(&asked)),
    };
    let offered = wanted.key.to_vec();
    let pinned = !asked.pinned.is_empty();
    let config = Arc::new(client_config(wanted, keepalive));
    let (client, verdict, lost) = Client::new(Arc::new(Trust::Known { known, asked }));
    let connected = client::connect_stream(config, stream, client).await;
    let mut handle = connected.map_err(|error| explain(route, error, &verdict, pinned, offered))?;
    match login(&mut handle, &route.login, opener).await {
        Ok(()) => Ok(Opened { handle, lost }),
        Err(NoLogin::Refused(why)) => Err(Failed::Permanent(ConnectError::Login(format!(
            "{} does not let {} in with credential `{}`: {why}",
            route, route.login, route.credential
        )))),
        Err(NoLogin::Ended) => {
            let ending = ended(lost).await;
            let told = format!("{route}: while logging in: {}", ending.sentence());
            match ending {
                Ending::Told(_) => Err(Failed::Permanent(ConnectError::Login(told))),
                Ending::Silent => Err(Failed::Unreachable(told)),
                Ending::Cut(_) => Err(Failed::Throttled(told)),
            }
        }
    }
}

/// How it ended; said shortly after it did.
pub(super) async fn ended(mut lost: watch::Receiver<Lost>) -> Ending {
    let none = || Ending::Cut("its task ended".to_owned());
    let found = tokio::time::timeout(Duration::from_secs(1), lost.wait_for(Option::is_some)).await;
    match found {
        Ok(Ok(ending)) => ending.clone().unwrap_or_else(none),
        _ => none(),
    }
}

/// What a handshake that failed means.
fn explain(
    route: &Route,
    error: russh::Error,
    verdict: &Mutex<Verdict>,
    pinned: bool,
    offered: Vec<Algorithm>,
) -> Failed {
    let verdict = verdict.lock().unwrap_or_else(PoisonError::into_inner);
    let host_key = |said: String| Failed::Permanent(ConnectError::HostKey(said));
    let unfit = |said: String| Failed::Permanent(ConnectError::Unfit(said));
    if let Some(distrust) = &verdict.distrust {
        // One that is pinned may be of another type than the one the host likes best.
        if pinned && *distrust == Distrust::NotPinned {
            let shown = verdict.key.as_ref().map(russh::keys::PublicKey::algorithm);
            let rest: Vec<Algorithm> = offered.into_iter().filter(|kind| !same_kind(shown.as_ref(), kind)).collect();
            if !rest.is_empty() && rest.len() < all_types().len() {
                return Failed::OtherKey(rest);
            }
        }
        return host_key(distrust.sentence(&route.to_string(), &scan_name(route), &shown_key(&verdict)));
    }
    if let Some(why) = verdict.weak {
        return unfit(format!("{route} is not safe to talk to: {why}"));
    }
    match error {
        russh::Error::NoCommonAlgo { kind: russh::AlgorithmKind::Key, .. } if pinned => host_key(format!(
            "{route} has none of the host keys whose fingerprints the inventory has: somebody may be in between; \
             if its operator says that they changed, correct `fingerprints` there"
        )),
        russh::Error::NoCommonAlgo { kind, theirs, .. } => unfit(format!(
            "{route} offers no {} that is safe (it offers {}); update its SSH server, or its settings",
            match kind {
                russh::AlgorithmKind::Kex => "key exchange",
                russh::AlgorithmKind::Key => "type of host key",
                russh::AlgorithmKind::Cipher => "cipher",
                russh::AlgorithmKind::Mac => "MAC",
                russh::AlgorithmKind::Compression => "compression",
            },
            some(&theirs)
        )),
        russh::Error::WrongServerSig | russh::Error::Signature(_) => {
            host_key(format!("{route} could not prove that its host key is its own: somebody may be in between"))
        }
        russh::Error::StrictKeyExchangeViolation { .. } | russh::Error::PacketAuth | russh::Error::DecryptionError => {
            Failed::Unreachable(format!("{route}: the handshake was disturbed ({error})"))
        }
        russh::Error::Version => {
            unfit(format!("what answers at {route} is no SSH server; correct its address and port"))
        }
        russh::Error::IO(_) | russh::Error::HUP | russh::Error::Disconnect => Failed::Throttled(format!(
            "{route} ended the connection before the login ({error}), as hosts with too many of them do"
        )),
        other => Failed::Unreachable(format!("{route}: the handshake failed: {other}")),
    }
}

fn same_kind(shown: Option<&Algorithm>, kind: &Algorithm) -> bool {
    match (shown, kind) {
        (Some(Algorithm::Rsa { .. }), Algorithm::Rsa { .. }) => true,
        (Some(shown), kind) => shown == kind,
        (None, _) => false,
    }
}

fn some(names: &[String]) -> String {
    let names: Vec<String> = names.iter().take(6).map(|name| crate::job::shown(name)).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The host as `jobcell ssh scan` takes it.
pub(super) fn scan_name(route: &Route) -> String {
    match route.port {
        22 => route.host.clone(),
        port if route.host.contains(':') => format!("[{}]:{port}", route.host),
        port => format!("{}:{port}", route.host),
    }
}

//! What a connection asks of this side while it lives: whether a host key is believed, and what to do with channels that nobody asked for.

use super::algorithms::good_enough;
use super::known::{Asked, Distrust, KnownHosts, described};
use crate::job::UnixMillis;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, Names};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Decides on the key that a host shows.
#[derive(Debug)]
pub(super) enum Trust {
    /// By what is known.
    Known { known: Arc<KnownHosts>, asked: Asked },
    /// Not at all: the key is only to be looked at, and the connection goes no further.
    Look,
}

/// What came of the look at a key.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// The key that was shown.
    pub(super) key: Option<PublicKey>,
    /// Why it is not believed.
    pub(super) distrust: Option<Distrust>,
    /// Why the handshake is not good enough.
    pub(super) weak: Option<&'static str>,
}

/// Why a connection ended; `None` while it lives.
pub(super) type Lost = Option<Ending>;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The host said why.
    Told(String),
    /// The host said nothing for too long.
    Silent,
    /// Nobody said anything; what was seen.
    Cut(String),
}

impl Ending {
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Told(said) => format!("the host ended the connection: {said}"),
            Self::Silent => "the host does not answer any more".to_owned(),
            Self::Cut(seen) => format!("the connection was cut: {seen}"),
        }
    }
}

/// One connection's side.
pub(super) struct Client {
    trust: Arc<Trust>,
    verdict: Arc<Mutex<Verdict>>,
    lost: watch::Sender<Lost>,
    exchanged: bool,
}

impl Client {
    /// With where the verdict and the end will be seen.
    pub(super) fn new(trust: Arc<Trust>) -> (Self, Arc<Mutex<Verdict>>, watch::Receiver<Lost>) {
        let verdict = Arc::new(Mutex::new(Verdict::default()));
        let (lost, ended) = watch::channel(None);
        (Self { trust, verdict: Arc::clone(&verdict), lost, exchanged: false }, verdict, ended)
    }
}

impl Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let checked = match &*self.trust {
            Trust::Known { known, asked } => known.check(asked, shown, UnixMillis::now().as_u64() / 1000),
            Trust::Look => Ok(()),
        };
        let believed = checked.is_ok() && matches!(*self.trust, Trust::Known { .. });
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.key = Some(shown.public_key());
        verdict.distrust = checked.err();
        Ok(believed)
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        names: &Names,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Whether it is strict is said in the first exchange alone.
        if !std::mem::replace(&mut self.exchanged, true)
            && let Err(why) = good_enough(names)
        {
            self.verdict.lock().unwrap_or_else(PoisonError::into_inner).weak = Some(why);
            return Err(russh::Error::KexInit);
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        let (ending, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                (Ending::Told(crate::job::one_line(info.message.trim(), 200)), Ok(()))
            }
            DisconnectReason::Error(russh::Error::KeepaliveTimeout) => {
                (Ending::Silent, Err(russh::Error::KeepaliveTimeout))
            }
            DisconnectReason::Error(error) => (Ending::Cut(error.to_string()), Err(error)),
        };
        self.lost.send_replace(Some(ending));
        result
    }

    // A host opens nothing here: what is dropped is refused.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// A host key that was shown, for people.
pub(super) fn shown_key(verdict: &Verdict) -> String {
    verdict.key.as_ref().map_or_else(|| "none was shown".to_owned(), described)
}

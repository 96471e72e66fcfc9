//! Why there is no channel to a host, in classes that say what to do next.

use std::time::Duration;

/// Why there is no channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The host's key is not to be believed. Will be so again until somebody does something.
    #[error("{0}")]
    HostKey(String),
    /// The host does not let this login in, or what would open it cannot be had. Will be so again until somebody does something.
    #[error("{0}")]
    Login(String),
    /// It cannot be asked for like this, or not of this host. Will be so again.
    #[error("{0}")]
    Unfit(String),
    /// The host did not answer lately, and is not asked for a while.
    #[error("{host} did not answer lately and is left alone for {wait:?} more; the last try: {last}")]
    Refused {
        /// Its name.
        host: String,
        /// Not before this much later.
        wait: Duration,
        /// What the last try came to.
        last: String,
    },
    /// The host asks for fewer connections at once.
    #[error("{0}")]
    Throttled(String),
    /// The host cannot be reached, or does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// All places on the connections to the host are taken.
    #[error("{0}")]
    Busy(String),
    /// The agent stops.
    #[error("the agent stops")]
    Stopped,
}

impl ConnectError {
    /// The same call will fail again, until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::HostKey(_) | Self::Login(_) | Self::Unfit(_))
    }

    /// A word for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::HostKey(_) => "host_key",
            Self::Login(_) => "login",
            Self::Unfit(_) => "unfit",
            Self::Refused { .. } => "refused",
            Self::Throttled(_) => "throttled",
            Self::Unreachable(_) => "unreachable",
            Self::Busy(_) => "busy",
            Self::Stopped => "stopped",
        }
    }

    /// The same, of the host on the way to another one.
    pub(super) fn on_the_way(self, jump: &str) -> Self {
        let told = |said: String| format!("jump host {jump}: {said}");
        match self {
            Self::HostKey(said) => Self::HostKey(told(said)),
            Self::Login(said) => Self::Login(told(said)),
            Self::Unfit(said) => Self::Unfit(told(said)),
            Self::Throttled(said) => Self::Throttled(told(said)),
            Self::Unreachable(said) => Self::Unreachable(told(said)),
            Self::Busy(said) => Self::Busy(told(said)),
            Self::Refused { host, wait, last } => Self::Refused { host: format!("jump host {host}"), wait, last },
            Self::Stopped => Self::Stopped,
        }
    }
}

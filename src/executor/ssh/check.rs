//! Whether jobs could run on a host, and how: what a first job there would find out, without a job.
//!
//! Leaves there what a first job leaves, a warden that goes by itself, and nothing of plain mode. Must never begin a job.

use super::executor::own_name;
use super::plain::{NotOpened, Opened, Place};
use super::resident::{Hubs, NoHub};
use super::{ConnectError, Lane, Pool, Route};
use crate::job::{AttemptId, JobId, OwnerId, UnixMillis};

/// How jobs would run on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A warden stays there.
    Resident,
    /// In plain mode, for this reason, until the host is changed.
    Plain(String),
    /// In plain mode, for this reason, which may pass.
    PlainForNow(String),
    /// They can run there; whether a warden can stay was not tried.
    Untried,
}

/// Why none could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoJobs {
    /// The host does not let this agent in.
    #[error(transparent)]
    Connect(ConnectError),
    /// It does, and runs nothing for it.
    #[error("it lets this login in, and runs no jobs for it: {0}")]
    Unfit(String),
    /// It did, and then was lost.
    #[error("{0}")]
    Lost(String),
}

impl NoJobs {
    /// A word for tables.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.class(),
            Self::Unfit(_) => "no_jobs",
            Self::Lost(_) => "unreachable",
        }
    }
}

impl Pool {
    /// Logs in at the end of `route` and has a job's first steps done there, for the installation `owner`; without one no warden is brought.
    /// Errors: no job could run.
    pub async fn try_out(&self, route: &Route, owner: Option<&OwnerId>) -> Result<Mode, NoJobs> {
        self.check(route).await.map_err(NoJobs::Connect)?;
        let mode = match owner {
            None => Mode::Untried,
            Some(owner) => match Hubs::new(self.clone(), owner.clone()).get(route, &Hubs::program()).await {
                Ok(_) => return Ok(Mode::Resident),
                Err(NoHub::Unfit(why)) => Mode::Plain(why),
                Err(NoHub::NotNow(why)) => Mode::PlainForNow(why),
                Err(NoHub::Connect(error)) => return Err(NoJobs::Connect(error)),
                Err(NoHub::Missing) => Mode::PlainForNow(NoHub::Missing.to_string()),
                Err(NoHub::Lost(why)) => return Err(NoJobs::Lost(why)),
            },
        };
        let owner = owner.cloned().unwrap_or_else(OwnerId::random);
        let place = Place::new(&owner, &own_name(AttemptId::new(JobId::new(UnixMillis::now()), 1)));
        let exec = self.exec(route, &place.opener(1), Lane::Job).await.map_err(NoJobs::Connect)?;
        match Opened::wait(exec).await {
            // Its input ends with it, and then the opener removes what it has made.
            Ok(_) => Ok(mode),
            Err(NotOpened::Unfit(why)) => Err(NoJobs::Unfit(why)),
            // The login is well and its folder cannot be made: as for a job, that is no connection that was lost.
            Err(NotOpened::Lost(why)) => Err(NoJobs::Unfit(why)),
        }
    }
}

//! Cells of both kinds behind one seam: containers here, and jobs on other hosts. Which one a job gets, its spec says.
//!
//! Must never know more of either than what every executor can do.

use super::ssh::{SshCell, SshExecutor};
use super::{Away, Cell, CellOrder, Executor, Link, NoCell, Prepared, Present, Seen, Tell};
use crate::job::{AttemptId, Source};
use crate::protocol::wire::{CellSpec, Fact};
use crate::queue::{CONTAINERS, HOSTS};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Makes cells of whichever kind the job asks for.
pub struct Both<D> {
    containers: Option<D>,
    hosts: Option<SshExecutor>,
}

impl<D> Both<D> {
    /// Of these; an agent may have one of them only.
    pub fn new(containers: Option<D>, hosts: Option<SshExecutor>) -> Self {
        Self { containers, hosts }
    }
}

/// A cell of either kind.
pub enum EitherCell<C> {
    /// A container.
    Container(C),
    /// A job on another host.
    Host(Box<SshCell>),
}

const NO_CONTAINERS: &str = "this agent makes no containers (docker.enabled: false)";
const NO_HOSTS: &str = "this agent has no inventory of hosts (ssh.inventory)";

impl<D: Executor> Both<D> {
    /// What it makes, by the names under which agents tell it.
    pub fn kinds(&self) -> Vec<String> {
        let containers = self.containers.is_some().then(|| CONTAINERS.to_owned());
        containers.into_iter().chain(self.hosts.is_some().then(|| HOSTS.to_owned())).collect()
    }

    fn containers(&self) -> Result<&D, String> {
        self.containers.as_ref().ok_or_else(|| NO_CONTAINERS.to_owned())
    }

    fn hosts(&self) -> Result<&SshExecutor, String> {
        self.hosts.as_ref().ok_or_else(|| NO_HOSTS.to_owned())
    }
}

fn is_elsewhere(order: &CellOrder) -> bool {
    matches!(order.spec.source(), Source::Target(_))
}

impl<D: Executor> Executor for Both<D> {
    type Cell = EitherCell<D::Cell>;

    /// Without its engine an agent still has its hosts.
    async fn probe(&self) -> Result<Away, String> {
        match (&self.containers, &self.hosts) {
            (Some(containers), None) => containers.probe().await,
            (Some(containers), Some(_)) => {
                Ok(containers.probe().await.unwrap_or_else(|reason| Away::from([(CONTAINERS, reason)])))
            }
            (None, Some(hosts)) => hosts.probe().await,
            (None, None) => Err(format!("{NO_CONTAINERS}, and {NO_HOSTS}")),
        }
    }

    async fn prepare(&self, order: &CellOrder, tell: Tell<'_>) -> Result<Prepared, NoCell> {
        if is_elsewhere(order) {
            return self.hosts().map_err(NoCell::Unavailable)?.prepare(order, tell).await;
        }
        self.containers().map_err(NoCell::Unavailable)?.prepare(order, tell).await
    }

    async fn acquire(&self, order: &CellOrder, prepared: &Prepared) -> Result<(Self::Cell, Link), NoCell> {
        if is_elsewhere(order) {
            let made = self.hosts().map_err(NoCell::Unavailable)?.acquire(order, prepared).await;
            return made.map(|(cell, link)| (EitherCell::Host(Box::new(cell)), link));
        }
        let made = self.containers().map_err(NoCell::Unavailable)?.acquire(order, prepared).await;
        made.map(|(cell, link)| (EitherCell::Container(cell), link))
    }

    async fn present(&self) -> Result<Vec<Present>, String> {
        let (all, away) = self.present_but(BTreeSet::new()).await?;
        away.into_values().next().map_or(Ok(all), Err)
    }

    async fn present_but(&self, known: BTreeSet<&'static str>) -> Result<(Vec<Present>, Away), String> {
        let (mut all, mut away) = (Vec::new(), Away::new());
        if let Some(containers) = self.containers.as_ref().filter(|_| !known.contains(CONTAINERS)) {
            match containers.present().await {
                Ok(found) => all.extend(found),
                Err(reason) if self.hosts.is_some() => drop(away.insert(CONTAINERS, reason)),
                Err(reason) => return Err(reason),
            }
        }
        if let Some(hosts) = self.hosts.as_ref().filter(|_| !known.contains(HOSTS)) {
            all.extend(hosts.present().await?);
        }
        Ok((all, away))
    }

    async fn adopt(&self, order: &CellOrder) -> Result<Self::Cell, String> {
        if is_elsewhere(order) {
            return self.hosts()?.adopt(order).await.map(|cell| EitherCell::Host(Box::new(cell)));
        }
        self.containers()?.adopt(order).await.map(EitherCell::Container)
    }

    fn plain_hosts(&self) -> BTreeMap<String, String> {
        self.hosts.as_ref().map(Executor::plain_hosts).unwrap_or_default()
    }

    fn outlives_us(&self, attempt: AttemptId) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.outlives_us(attempt))
    }

    async fn remove(&self, name: &str) {
        // Names come from `present`, so whoever told them is there.
        match (SshExecutor::is_named(name), &self.hosts, &self.containers) {
            (true, Some(hosts), _) => hosts.remove(name).await,
            (false, _, Some(containers)) => containers.remove(name).await,
            _ => {}
        }
    }
}

impl<C: Cell> Cell for EitherCell<C> {
    fn cell_spec(&self) -> &CellSpec {
        match self {
            Self::Container(cell) => cell.cell_spec(),
            Self::Host(cell) => cell.cell_spec(),
        }
    }

    fn facts(&self) -> &[Fact] {
        match self {
            Self::Container(cell) => cell.facts(),
            Self::Host(cell) => cell.facts(),
        }
    }

    fn patience(&self, usual: Duration) -> Duration {
        match self {
            Self::Container(cell) => cell.patience(usual),
            Self::Host(cell) => cell.patience(usual),
        }
    }

    async fn attach(&self) -> Result<Link, String> {
        match self {
            Self::Container(cell) => cell.attach().await,
            Self::Host(cell) => cell.attach().await,
        }
    }

    async fn look(&self) -> Result<Seen, String> {
        match self {
            Self::Container(cell) => cell.look().await,
            Self::Host(cell) => cell.look().await,
        }
    }

    async fn kill(&self) -> Result<(), String> {
        match self {
            Self::Container(cell) => cell.kill().await,
            Self::Host(cell) => cell.kill().await,
        }
    }

    async fn destroy(self) {
        match self {
            Self::Container(cell) => cell.destroy().await,
            Self::Host(cell) => cell.destroy().await,
        }
    }
}

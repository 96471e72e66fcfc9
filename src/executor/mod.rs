//! Makes cells and talks to the warden in them.
//!
//! Owns two seams: [`Executor`] makes cells of one kind, [`Cell`] is one of them. What is the same for every kind, the
//! conversation with the warden, is in [`warden`]. Must never decide what a job's end means to its backend.

mod arriving;
mod both;
pub mod docker;
mod inputs;
#[cfg(test)]
pub(crate) mod scripted;
mod spec;
pub mod ssh;
pub mod warden;

pub use arriving::{Arriving, STARTING};
pub use both::{Both, EitherCell};
pub use inputs::{InputPiece, Inputs, PIECES};

use crate::job::{AttemptId, Cause, JobSpec, Later, Millis, UsedImage};
use crate::protocol::wire;
use futures_util::Stream;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWrite;

/// What one attempt asks of a cell: the checked spec, with what the operator's configuration adds to it.
#[derive(Debug, Clone)]
pub struct CellOrder {
    /// The attempt; every name outside derives from it.
    pub attempt: AttemptId,
    /// What the user asked for.
    pub spec: Arc<JobSpec>,
    /// The image, resolved from the preset where one was named.
    pub image: String,
    /// Program and arguments; the element `{script}` stands for the script's path in the cell.
    pub argv: Vec<String>,
    /// Between TERM and KILL.
    pub grace: Millis,
    /// What the job is given that nobody else may see; none in an order for a cell that has its job.
    pub secrets: Vec<wire::Secret>,
    /// What it is given before it starts, if anything.
    pub inputs: Option<Inputs>,
    /// The first term of the lease; the warden ends the job by itself when it runs out unrenewed.
    pub lease: Millis,
}

/// What a warden writes.
pub type LinkOutput = Pin<Box<dyn Stream<Item = Result<bytes::Bytes, String>> + Send>>;
/// What a warden reads.
pub type LinkInput = Pin<Box<dyn AsyncWrite + Send>>;

/// The transport to a warden: any byte stream will do.
pub struct Link {
    /// What the warden writes.
    pub output: LinkOutput,
    /// What it reads.
    pub input: LinkInput,
}

/// What a cell is seen to be from outside, by whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It runs.
    Running,
    /// It has ended or is gone; the text says what was seen.
    Gone(String),
}

/// A cell of this installation, or what is left of one, that whoever runs it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its name, for [`Executor::remove`].
    pub name: String,
    /// Whose it is; `None` for what was made beside cells, and for a name that is no attempt's.
    pub attempt: Option<AttemptId>,
    /// It is the cell itself, and not what was made beside it, such as its network.
    pub cell: bool,
    /// It runs: a warden is in it.
    pub running: bool,
    /// This process makes or removes it at the moment, apart from any attempt.
    pub busy: bool,
    /// What it was made of, as far as it says.
    pub image: Option<UsedImage>,
}

/// The fact of a cell that names limits which a job asks for and nobody there can hold it to.
pub const LIMITS_MISSED: &str = "limits_not_in_force";

/// What others have taken may be free again after so long.
pub(crate) const TAKEN: Duration = Duration::from_secs(5);

/// Why there is no cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCell {
    /// Nothing can be made here at the moment, whatever the job: it goes back to the queue.
    Unavailable(String),
    /// This one cannot be made at the moment, and others can: it goes back to the queue until later, which costs it no try, and nothing else waits.
    Later(Later),
    /// What was prepared for it is gone again: it may be prepared anew, or the attempt ends with this cause.
    Vanished(Cause),
    /// It cannot be made for this job: the attempt ends with this cause.
    Failed(Cause),
}

impl NoCell {
    /// It cannot be made for so long.
    pub(crate) fn later(after: Duration, reason: String) -> Self {
        Self::Later(Later { after: after.into(), reason })
    }
}

/// What a cell needs before it is made; kept there for as long as this lives.
#[derive(Default)]
pub struct Prepared {
    /// What it will run in.
    pub image: Option<UsedImage>,
    /// Whatever keeps it there.
    pub hold: Option<Box<dyn Any + Send + Sync>>,
}

/// Hears, in words, how a preparation gets on. May be called often.
pub type Tell<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Kinds of cells that cannot be made at the moment, with why.
pub type Away = BTreeMap<&'static str, String>;

/// Makes cells.
pub trait Executor: Send + Sync + 'static {
    /// The kind of cell.
    type Cell: Cell;

    /// Which kinds of cells cannot be made at the moment, while others can. Errors: a sentence that says why none can.
    fn probe(&self) -> impl Future<Output = Result<Away, String>> + Send;

    /// Sees to it that what the cell is made of is there, which can take minutes. May be dropped at any moment, and leaves nothing behind then.
    /// Errors: why it cannot be had.
    fn prepare(&self, _order: &CellOrder, _tell: Tell<'_>) -> impl Future<Output = Result<Prepared, NoCell>> + Send {
        std::future::ready(Ok(Prepared::default()))
    }

    /// Makes a cell in which a warden waits for its spec, and the first link to it. Errors: why not; nothing is left
    /// behind then.
    fn acquire(
        &self,
        order: &CellOrder,
        prepared: &Prepared,
    ) -> impl Future<Output = Result<(Self::Cell, Link), NoCell>> + Send;

    /// What there is of this installation. Errors: whoever runs the cells does not answer.
    fn present(&self) -> impl Future<Output = Result<Vec<Present>, String>> + Send;

    /// The same of the kinds that are not `known`, and of which of them nobody answers, while others do. Errors: nobody answers.
    fn present_but(
        &self,
        _known: BTreeSet<&'static str>,
    ) -> impl Future<Output = Result<(Vec<Present>, Away), String>> + Send {
        async { Ok((self.present().await?, Away::new())) }
    }

    /// The running cell that an earlier process made for this attempt, without a link. Errors: whoever runs it does not answer,
    /// or does not have it.
    fn adopt(&self, order: &CellOrder) -> impl Future<Output = Result<Self::Cell, String>> + Send;

    /// Hosts whose jobs run with less than a warden that stays, by login and name, with why.
    fn plain_hosts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Whether the cell of this attempt, if it has one, goes on when this process ends, for the next one to adopt it.
    fn outlives_us(&self, _attempt: AttemptId) -> bool {
        true
    }

    /// Removes a cell of an earlier process, with all that runs in it. A removal that fails is tried again in the background.
    fn remove(&self, name: &str) -> impl Future<Output = ()> + Send;
}

/// One cell, used by one attempt.
pub trait Cell: Send + Sync + 'static {
    /// What the warden must find in force before it starts the job, and everything else it needs to know.
    fn cell_spec(&self) -> &wire::CellSpec;

    /// What is known of where it is and is not seen from inside; it stands before the warden's receipt.
    fn facts(&self) -> &[wire::Fact] {
        &[]
    }

    /// How long whoever runs it may be away before it is given up, where that is `usual` for an engine.
    fn patience(&self, usual: Duration) -> Duration {
        usual
    }

    /// A new link to the warden, after a cut. Errors: why not, for a next try.
    fn attach(&self) -> impl Future<Output = Result<Link, String>> + Send;

    /// What the cell is seen to be. Errors: whoever runs it does not answer.
    fn look(&self) -> impl Future<Output = Result<Seen, String>> + Send;

    /// Ends everything in it at once, without its help. Errors: what was said; the cell may still run.
    fn kill(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Removes it. A removal that fails is tried again in the background by the executor.
    fn destroy(self) -> impl Future<Output = ()> + Send;
}

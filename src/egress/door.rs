//! One conversation's side of it: takes what the warden says of streams, and has what is to be said to it.

use super::Outside;
use super::judge::No;
use super::stream::{Stream, UP_COMMON, Up};
use super::tally::Tally;
use crate::job::AttemptId;
use crate::job::JobSpec;
use crate::job::egress::{EgressRule, EgressUse};
use crate::protocol::wire::{ALL_STREAMS, EGRESS_CONNECTIONS, EGRESS_WINDOW, Egress, EgressFault};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinSet};

/// Pieces that are ready to be sent. Full: the connections of the job wait, and read no more from their servers.
const READY: usize = 4;
/// A warden gives credit for what it has room for; nobody has room for this much.
const CREDIT_MAX: usize = 16 << 20;
/// Names of one job that are looked up at once: a quarter of all that are.
const LOOKUPS_AT_ONCE: usize = 4;
/// For what a cell has sent before its end.
const LINGER: Duration = Duration::from_secs(2);

/// Something for the warden.
#[derive(Debug)]
pub enum Out {
    /// A word.
    Word(Egress),
    /// Bytes of a stream.
    Data(u32, Bytes),
}

/// The way out of one cell, as long as one process talks to its warden.
pub struct Door {
    outside: Outside,
    rules: Arc<[EgressRule]>,
    concurrent: usize,
    tally: Arc<Tally>,
    lookups: Arc<Semaphore>,
    /// What the windows of its connections may grow by.
    common: Arc<Semaphore>,
    streams: HashMap<u32, Handle>,
    tasks: JoinSet<()>,
    ids: HashMap<Id, u32>,
    out: (mpsc::Sender<Out>, mpsc::Receiver<Out>),
    /// Answers that need no connection. Bounded by what the warden asks, which waits for each.
    words: VecDeque<Egress>,
    /// What the warden may still send, of all streams together.
    window: u32,
}

struct Handle {
    up: Arc<Up>,
    credit: Arc<Semaphore>,
    task: AbortHandle,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Door {
    /// The door of a job, if it asked for one.
    pub fn of(attempt: AttemptId, spec: &JobSpec, outside: &Outside) -> Option<Self> {
        let asked = spec.egress();
        if asked.is_none() {
            return None;
        }
        Some(Self {
            rules: asked.allow.clone().into(),
            concurrent: usize::from(outside.connections()),
            tally: Arc::new(Tally::new(attempt, asked, &outside.settings)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
            common: Arc::new(Semaphore::new(UP_COMMON)),
            outside: outside.clone(),
            streams: HashMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            out: mpsc::channel(READY),
            words: VecDeque::new(),
            window: EGRESS_WINDOW,
        })
    }

    /// What went through it.
    pub fn told(&self) -> EgressUse {
        self.tally.told()
    }

    /// The link is gone, and all connections with it.
    pub fn reset(&mut self) {
        self.tasks = JoinSet::new();
        self.ids.clear();
        self.streams.clear();
        self.words.clear();
        self.out = mpsc::channel(READY);
        self.window = EGRESS_WINDOW;
    }

    /// The next thing to say. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Out {
        loop {
            // What came is out of the transport, whoever takes it.
            let due = EGRESS_WINDOW - self.window;
            if due >= EGRESS_WINDOW / 4 {
                self.window = EGRESS_WINDOW;
                return Out::Word(Egress::Credit { stream: ALL_STREAMS, bytes: due });
            }
            if let Some(word) = self.words.pop_front() {
                return Out::Word(word);
            }
            tokio::select! {
                biased;
                Some(out) = self.out.1.recv() => return out,
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    if let Some(stream) = self.ids.remove(&id) {
                        self.streams.remove(&stream);
                    }
                }
            }
        }
    }

    /// Takes a word of the warden. Errors: it does not keep to what was agreed.
    pub fn take(&mut self, message: Egress) -> Result<(), &'static str> {
        match message {
            Egress::Open { stream, host, port, credit } => return self.open(stream, host, port, credit),
            Egress::Data { stream, bytes } => {
                let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.window = self.window.checked_sub(count).ok_or("it sends more of its streams than it may")?;
                if let Some(handle) = self.streams.get(&stream)
                    && !handle.up.take(&bytes)
                {
                    return Err("it sends more of a stream than it may");
                }
            }
            Egress::Credit { stream, bytes } => {
                if let Some(handle) = self.streams.get(&stream) {
                    let bytes = bytes as usize;
                    if handle.credit.available_permits() + bytes > CREDIT_MAX {
                        return Err("it gives more credit than anybody has");
                    }
                    handle.credit.add_permits(bytes);
                }
            }
            Egress::Eof { stream } => {
                if let Some(handle) = self.streams.get(&stream) {
                    handle.up.end();
                }
            }
            Egress::Reset { stream } => {
                if let Some(handle) = self.streams.remove(&stream) {
                    self.ids.remove(&handle.task.id());
                    handle.task.abort();
                }
            }
            Egress::Opened { .. } | Egress::Failed { .. } => return Err("it answers what nobody asked"),
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, host: String, port: u16, credit: u32) -> Result<(), &'static str> {
        if stream == ALL_STREAMS || self.streams.contains_key(&stream) || credit as usize > CREDIT_MAX {
            return Err("it opens a stream that cannot be");
        }
        // The warden takes no more clients than these; a second lock, for one that does. It may be ahead of what has ended here.
        if self.streams.len() >= 2 * self.concurrent {
            let reason = format!("the job has {} connections already", self.concurrent);
            let no = No::new(EgressFault::Limit, "too_many_at_once", reason);
            self.tally.refuse(&host, port, &no);
            if self.words.len() > usize::from(EGRESS_CONNECTIONS) {
                return Err("it asks for more than it waits for");
            }
            self.words.push_back(Egress::Failed { stream, fault: no.fault, text: no.reason });
            return Ok(());
        }
        let (up, credit) = (Arc::new(Up::new(&self.common)), Arc::new(Semaphore::new(credit as usize)));
        let task = Stream {
            id: stream,
            host,
            port,
            rules: Arc::clone(&self.rules),
            outside: self.outside.clone(),
            tally: Arc::clone(&self.tally),
            lookups: Arc::clone(&self.lookups),
            up: Arc::clone(&up),
            credit: Arc::clone(&credit),
            out: self.out.0.clone(),
        };
        let task = self.tasks.spawn(task.run());
        self.ids.insert(task.id(), stream);
        self.streams.insert(stream, Handle { up, credit, task });
        Ok(())
    }

    /// The job has ended: what it had sent and said to be all goes to its servers, for a moment.
    pub async fn close(&mut self) {
        let ending: Vec<Arc<Up>> =
            self.streams.values().map(|one| Arc::clone(&one.up)).filter(|up| up.is_ending()).collect();
        let written = async {
            for up in ending {
                up.written().await;
            }
        };
        // What they have for the cell is taken from them and dropped: a full queue would hold them up.
        let drained = async {
            loop {
                self.next().await;
            }
        };
        tokio::select! {
            biased;
            () = written => {}
            () = drained => {}
            () = tokio::time::sleep(LINGER) => {}
        }
    }
}

impl Outside {
    /// Connections of one job at a time.
    pub fn connections(&self) -> u16 {
        self.settings.concurrent.clamp(1, EGRESS_CONNECTIONS)
    }
}

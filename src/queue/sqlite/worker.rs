//! A thread that owns a connection and takes commands through a bounded channel. When it is full, callers wait.

use crate::queue::StoreError;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait. Each caller waits for its answer anyway, so this only bounds how many.
const WAITING: usize = 1024;
/// Commands in one transaction: enough to make the sync cheap, few enough to answer within milliseconds.
const GROUP: usize = 256;

/// What a command leaves to be told, once it is known whether its transaction was committed.
type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Command = Box<dyn FnOnce(&Connection) -> Tell + Send>;

#[derive(Debug)]
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
}

impl Worker {
    /// Every command that waits goes into one transaction, each in a savepoint of its own.
    pub(super) fn grouping(name: &str, db: Connection) -> Self {
        Self::start(name, db, |db, first, commands| {
            let mut tells = Vec::new();
            let begun = db.execute_batch("BEGIN IMMEDIATE");
            if let Err(error) = begun {
                // The command never ran; it is told so through a connection that refuses everything it does.
                let tell = first(db);
                return tell(Err(database(&error)));
            }
            let mut next = Some(first);
            while let Some(command) = next.take() {
                tells.push(command(db));
                if tells.len() < GROUP {
                    next = commands.try_recv().ok();
                }
            }
            let committed = db.execute_batch("COMMIT").map_err(|error| database(&error));
            if committed.is_err() && !db.is_autocommit() {
                let _ = db.execute_batch("ROLLBACK");
            }
            for tell in tells {
                tell(committed.clone());
            }
        })
    }

    /// Every command by itself.
    pub(super) fn single(name: &str, db: Connection) -> Self {
        Self::start(name, db, |db, command, _| command(db)(Ok(())))
    }

    fn start(
        name: &str,
        db: Connection,
        serve: impl Fn(&Connection, Command, &mut mpsc::Receiver<Command>) + Send + 'static,
    ) -> Self {
        let (commands, mut waiting) = mpsc::channel::<Command>(WAITING);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(command) = waiting.blocking_recv() {
                serve(&db, command, &mut waiting);
            }
        });
        // Without the thread the receiver is dropped, and every call answers that the queue is closed.
        if let Err(error) = thread {
            tracing::error!(%error, name, "thread cannot be started");
        }
        Self { commands }
    }

    /// Runs `work` and answers when its transaction is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |db| {
            let result = in_savepoint(db, work);
            Box::new(move |committed| {
                // Whoever asked may have gone away; the change stands all the same.
                let _ = answer.send(committed.and_then(|()| result.map_err(|error| database(&error))));
            })
        });
        self.commands.send(command).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

/// A command that fails undoes only itself, not the others in its transaction.
fn in_savepoint<T>(db: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    if db.is_autocommit() {
        return work(db);
    }
    db.prepare_cached("SAVEPOINT command")?.execute([])?;
    let result = work(db);
    if result.is_err() {
        db.prepare_cached("ROLLBACK TO command")?.execute([])?;
    }
    db.prepare_cached("RELEASE command")?.execute([])?;
    result
}

fn database(error: &rusqlite::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

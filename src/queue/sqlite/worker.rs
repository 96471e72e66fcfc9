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
/// Gets the connection, or the reason why there is no transaction to work in.
type Command = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Tell + Send>;

#[derive(Debug)]
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
}

impl Worker {
    /// Every command that waits goes into one transaction, each in a savepoint of its own.
    pub(super) fn grouping(name: &str, db: Connection) -> Self {
        Self::start(name, db, |db, first, commands| {
            if let Err(error) = db.execute_batch("BEGIN IMMEDIATE") {
                return first(Err(database(&error)))(Ok(()));
            }
            let mut tells = Vec::new();
            let mut next = Some(first);
            while let Some(command) = next.take() {
                tells.push(command(Ok(db)));
                if db.is_autocommit() {
                    // SQLite gave up the whole transaction, as it does on a full disk. The command that met it has its
                    // own error; those before it hear that they were undone; those after it get a new transaction.
                    let undone = StoreError::Database("undone together with another request that failed".to_owned());
                    return tells.into_iter().for_each(|tell| tell(Err(undone.clone())));
                }
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

    /// Every command by itself, on one snapshot.
    pub(super) fn single(name: &str, db: Connection) -> Self {
        Self::start(name, db, |db, command, _| command(Ok(db))(Ok(())))
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

    /// Runs `work` and answers when its transaction is committed. A caller that went away before its turn is passed over;
    /// the work of one that goes away later is done, and its result is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_then(work, |result| result).await
    }

    /// Like [`run`](Self::run); what is answered is made from the result when the transaction is committed, and only then.
    pub(super) async fn run_then<T: Send + 'static, R: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(T) -> R + Send + 'static,
    ) -> Result<R, StoreError> {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |db| {
            let result = match db {
                Err(error) => Err(error),
                Ok(_) if answer.is_closed() => Err(StoreError::Closed),
                Ok(db) => in_savepoint(db, work).map_err(|error| database(&error)),
            };
            Box::new(move |committed| {
                // Its own error says more than that of the transaction.
                let _ = answer.send(result.and_then(|value| committed.map(|()| then(value))));
            })
        });
        self.commands.send(command).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// For work that nobody waits for.
    pub(super) fn poster(&self) -> Poster {
        Poster { commands: self.commands.downgrade() }
    }
}

/// Hands work to a worker without waiting, and without keeping the worker alive.
pub(super) struct Poster {
    commands: mpsc::WeakSender<Command>,
}

impl Poster {
    /// Runs `work` some time soon. When the channel is full or the worker is gone the work is not done: only for what
    /// is put right in another way later.
    pub(super) fn post(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        let command: Command = Box::new(move |db| {
            let result = db.and_then(|db| in_savepoint(db, work).map_err(|error| database(&error)));
            Box::new(move |committed| {
                if let Err(error) = result.and(committed) {
                    tracing::warn!(%error, "work that nobody waits for failed");
                }
            })
        });
        let sent = self.commands.upgrade().is_some_and(|commands| commands.try_send(command).is_ok());
        if !sent {
            tracing::debug!("work that nobody waits for was left out: the queue is busy or closed");
        }
    }
}

/// A command that fails undoes only itself, not the others in its transaction.
fn in_savepoint<T>(db: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    db.prepare_cached("SAVEPOINT command")?.execute([])?;
    let result = work(db);
    // After an error that broke the whole transaction there is nothing left to go back to.
    if !db.is_autocommit() {
        if result.is_err() {
            db.prepare_cached("ROLLBACK TO command")?.execute([])?;
        }
        db.prepare_cached("RELEASE command")?.execute([])?;
    }
    result
}

fn database(error: &rusqlite::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> (tempfile::TempDir, Worker) {
        let dir = tempfile::tempdir().expect("a folder");
        let db = Connection::open(dir.path().join("x.db")).expect("opens");
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 1; CREATE TABLE t (n INTEGER)")
            .expect("makes");
        (dir, Worker::grouping("test", db))
    }

    fn insert(n: i64) -> impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static {
        move |db| db.execute("INSERT INTO t VALUES (?1)", [n]).map(drop)
    }

    /// Sends three requests that share one transaction, because a first one holds the worker until all are sent.
    async fn grouped<T: Send + 'static>(
        worker: &Worker,
        middle: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> (Result<(), StoreError>, Result<T, StoreError>, Result<(), StoreError>, Vec<i64>) {
        let (running, runs) = oneshot::channel();
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let gate = worker.run(move |db| {
            // Ends the gate's own transaction, so that the next requests are a group of their own.
            let _ = running.send(());
            wait.recv_timeout(std::time::Duration::from_secs(10)).expect("is let go");
            db.execute_batch("ROLLBACK")
        });
        let three = async {
            runs.await.expect("the gate runs");
            // Polled in order: all three are sent before the gate opens.
            tokio::join!(worker.run(insert(1)), worker.run(middle), worker.run(insert(3)), async {
                go.send(()).expect("the gate waits");
            })
        };
        let (gate, (first, middle, last, ())) = tokio::join!(gate, three);
        gate.expect_err("undone with its transaction");
        let kept = worker
            .run(|db| db.prepare("SELECT n FROM t ORDER BY n")?.query_map([], |row| row.get(0))?.collect())
            .await
            .expect("reads");
        (first, middle, last, kept)
    }

    #[tokio::test]
    async fn a_request_that_fails_takes_nobody_of_its_group_with_it() {
        let (_dir, worker) = worker();
        let (first, failed, last, kept) = grouped(&worker, |db| {
            db.execute("INSERT INTO t VALUES (2)", [])?;
            db.execute("INSERT INTO nowhere VALUES (2)", [])
        })
        .await;
        assert!(first.is_ok() && failed.is_err() && last.is_ok());
        assert_eq!(kept, [1, 3]);
    }

    #[tokio::test]
    async fn what_is_answered_with_an_error_was_not_done() {
        let (_dir, worker) = worker();
        // What SQLite does by itself when the disk is full.
        let (first, broken, last, kept) = grouped(&worker, |db| {
            db.execute_batch("ROLLBACK")?;
            Err::<(), _>(rusqlite::Error::InvalidQuery)
        })
        .await;
        assert!(first.is_err() && broken.is_err(), "undone, and told so");
        assert!(last.is_ok(), "the next transaction is not concerned");
        assert_eq!(kept, [3]);
    }

    #[tokio::test]
    async fn without_a_transaction_nothing_is_done() {
        let (dir, worker) = worker();
        let other = Connection::open(dir.path().join("x.db")).expect("opens");
        other.execute_batch("BEGIN IMMEDIATE").expect("holds the lock");
        worker.run(insert(1)).await.expect_err("the file is locked");
        other.execute_batch("ROLLBACK").expect("lets go");
        worker.run(insert(2)).await.expect("works again");
        let kept: i64 = other.query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).expect("reads");
        assert_eq!(kept, 2);
    }
}

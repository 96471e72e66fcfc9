//! A thread that owns a connection and takes commands through a bounded channel. When it is full, callers wait.

use super::Error;
use rusqlite::Connection;
use std::marker::PhantomData;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait. Each caller waits for its answer anyway, so this only bounds how many.
const WAITING: usize = 1024;
/// Commands in one transaction: enough to make the sync cheap, few enough to answer within milliseconds.
const GROUP: usize = 256;

/// What an answer promises of the work that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives the process.
    Written,
    /// It survives the power.
    Synced,
}

/// What a command leaves to be told, once it is known whether its transaction was committed.
type Tell = Box<dyn FnOnce(Result<(), Error>) + Send>;
/// Gets the connection, or the reason why there is no transaction to work in.
type Work = Box<dyn FnOnce(Result<&Connection, Error>) -> Tell + Send>;

struct Command {
    durability: Durability,
    work: Work,
}

/// A thread with a connection. Errors of its work are turned into `E`. It ends when the last handle is dropped.
#[derive(Debug)]
pub struct Worker<E> {
    commands: mpsc::Sender<Command>,
    error: PhantomData<fn() -> E>,
}

impl<E: From<Error>> Worker<E> {
    /// Every command that waits goes into one transaction, each in a savepoint of its own.
    ///
    /// A transaction is of one durability. One that syncs takes everybody in; one that does not ends before the first
    /// command that wants a sync, so that nobody waits for a sync who did not come after one that needs it.
    pub fn grouping(name: &str, db: Connection) -> Self {
        // As the file was opened.
        let mut set = Durability::Synced;
        Self::start(name, db, move |db, first, commands| {
            let durability = first.durability;
            if let Err(error) = begin(db, &mut set, durability) {
                (first.work)(Err(database(&error)))(Ok(()));
                return None;
            }
            let (mut tells, mut held) = (Vec::new(), None);
            let mut next = Some(first);
            while let Some(command) = next.take() {
                tells.push((command.work)(Ok(db)));
                if db.is_autocommit() {
                    // SQLite gave up the whole transaction, as it does on a full disk. The command that met it has its
                    // own error; those before it hear that they were undone; those after it get a new transaction.
                    let undone = Error::Refused("undone together with another request that failed".to_owned());
                    tells.into_iter().for_each(|tell| tell(Err(undone.clone())));
                    return None;
                }
                if tells.len() < GROUP {
                    next = commands.try_recv().ok();
                }
                if durability == Durability::Written {
                    held = next.take_if(|command| command.durability == Durability::Synced);
                }
            }
            let committed = execute(db, "COMMIT").map_err(|error| database(&error));
            if committed.is_err() && !db.is_autocommit() {
                let _ = execute(db, "ROLLBACK");
            }
            for tell in tells {
                tell(committed.clone());
            }
            held
        })
    }

    /// Every command by itself, on one snapshot.
    pub fn single(name: &str, db: Connection) -> Self {
        Self::start(name, db, |db, command, _| {
            (command.work)(Ok(db))(Ok(()));
            None
        })
    }

    /// `serve` does a command, and those that wait if it likes, and may hand back one that is to be the next.
    fn start(
        name: &str,
        db: Connection,
        mut serve: impl FnMut(&Connection, Command, &mut mpsc::Receiver<Command>) -> Option<Command> + Send + 'static,
    ) -> Self {
        let (commands, mut waiting) = mpsc::channel::<Command>(WAITING);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut held = None;
            while let Some(command) = held.take().or_else(|| waiting.blocking_recv()) {
                held = serve(&db, command, &mut waiting);
            }
        });
        // Without the thread the receiver is dropped, and every call answers that the worker is closed.
        if let Err(error) = thread {
            tracing::error!(%error, name, "thread cannot be started");
        }
        Self { commands, error: PhantomData }
    }

    /// Runs `work` and answers when its transaction is committed and synced. A caller that went away before its turn is
    /// passed over; the work of one that goes away later is done, and its result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, E> {
        self.send(Durability::Synced, work, |result| result).await
    }

    /// Like [`run`](Self::run), with a word on what the answer promises.
    pub async fn run_as<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, E> {
        self.send(durability, work, |result| result).await
    }

    /// Like [`run`](Self::run); what is answered is made from the result when the transaction is committed, and only then.
    pub async fn run_then<T: Send + 'static, R: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(T) -> R + Send + 'static,
    ) -> Result<R, E> {
        self.send(Durability::Synced, work, then).await
    }

    async fn send<T: Send + 'static, R: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(T) -> R + Send + 'static,
    ) -> Result<R, E> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |db| {
            let result = match db {
                Err(error) => Err(error),
                Ok(_) if answer.is_closed() => Err(Error::Closed),
                Ok(db) => in_savepoint(db, work).map_err(|error| database(&error)),
            };
            Box::new(move |committed| {
                // Its own error says more than that of the transaction.
                let _ = answer.send(result.and_then(|value| committed.map(|()| then(value))));
            })
        });
        self.commands.send(Command { durability, work }).await.map_err(|_| Error::Closed)?;
        Ok(answered.await.map_err(|_| Error::Closed)??)
    }

    /// For work that nobody waits for.
    pub fn poster(&self) -> Poster {
        Poster { commands: self.commands.downgrade() }
    }
}

/// Hands work to a worker without waiting, and without keeping the worker alive.
#[derive(Debug)]
pub struct Poster {
    commands: mpsc::WeakSender<Command>,
}

impl Poster {
    /// Runs `work` some time soon. When the channel is full or the worker is gone the work is not done: only for what
    /// is put right in another way later.
    pub fn post(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        let work: Work = Box::new(move |db| {
            let result = db.and_then(|db| in_savepoint(db, work).map_err(|error| database(&error)));
            Box::new(move |committed| {
                if let Err(error) = result.and(committed) {
                    tracing::warn!(%error, "work that nobody waits for failed");
                }
            })
        });
        let command = Command { durability: Durability::Synced, work };
        let sent = self.commands.upgrade().is_some_and(|commands| commands.try_send(command).is_ok());
        if !sent {
            tracing::debug!("work that nobody waits for was left out: the worker is busy or closed");
        }
    }
}

/// Begins a transaction of this durability; `set` is that of the one before.
fn begin(db: &Connection, set: &mut Durability, durability: Durability) -> rusqlite::Result<()> {
    if *set != durability {
        // Never through the cache: this one takes effect when it is prepared, and only then.
        db.execute_batch(match durability {
            Durability::Written => "PRAGMA synchronous = NORMAL",
            Durability::Synced => "PRAGMA synchronous = FULL",
        })?;
        *set = durability;
    }
    execute(db, "BEGIN IMMEDIATE")
}

fn execute(db: &Connection, statement: &str) -> rusqlite::Result<()> {
    db.prepare_cached(statement)?.execute([]).map(drop)
}

/// A command that fails undoes only itself, not the others in its transaction.
fn in_savepoint<T>(db: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    execute(db, "SAVEPOINT command")?;
    let result = work(db);
    // After an error that broke the whole transaction there is nothing left to go back to.
    if !db.is_autocommit() {
        if result.is_err() {
            execute(db, "ROLLBACK TO command")?;
        }
        execute(db, "RELEASE command")?;
    }
    result
}

fn database(error: &rusqlite::Error) -> Error {
    Error::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> (tempfile::TempDir, Worker<Error>) {
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
        worker: &Worker<Error>,
        middle: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> (Result<(), Error>, Result<T, Error>, Result<(), Error>, Vec<i64>) {
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
    async fn a_transaction_is_synced_from_the_first_request_on_that_wants_it() {
        let (dir, worker) = worker();
        let path = dir.path().join("x.db");
        let (running, runs) = oneshot::channel();
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let gate = worker.run(move |db| {
            let _ = running.send(());
            wait.recv_timeout(std::time::Duration::from_secs(10)).expect("is let go");
            db.execute_batch("ROLLBACK")
        });
        // What was committed before the transaction that the request is in, and how that one will be.
        let which = |durability| {
            let path = path.clone();
            worker.run_as(durability, move |db| {
                db.execute("INSERT INTO t VALUES (0)", [])?;
                let before: i64 = Connection::open(path)?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
                Ok((before, db.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0))?))
            })
        };
        let requests = async {
            runs.await.expect("the gate runs");
            tokio::join!(
                which(Durability::Written),
                which(Durability::Written),
                which(Durability::Synced),
                which(Durability::Written),
                async { go.send(()).expect("the gate waits") }
            )
        };
        let (_, (a, b, c, d, ())) = tokio::join!(gate, requests);
        let (normal, full) = (1, 2);
        assert_eq!([a, b, c, d].map(|answer| answer.expect("done")), [(0, normal), (0, normal), (2, full), (2, full)]);
        assert_eq!(which(Durability::Written).await.expect("done"), (4, normal));
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

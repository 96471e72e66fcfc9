//! Queued jobs by shape: the facts that a claim is decided on.

use super::rows;
use crate::job::{JobSpec, UnixMillis};
use crate::queue::Groups;
use crate::queue::routing::{Candidate, Glance, Look, Running, Shape};
use rusqlite::{Connection, OptionalExtension, params};
use std::cell::OnceCell;

/// The first jobs of a shape. The condition is that of the partial index, word for word: SQLite uses it only then.
pub(super) const FIRST: &str = "SELECT seq, priority, submitted_at FROM jobs INDEXED BY shape_order \
     WHERE shape = ?1 AND phase = 'queued' AND parked IS NULL AND not_before IS NULL ORDER BY priority DESC, seq LIMIT ?2";

/// Shapes with queued jobs, in the order of their first ones.
pub(super) const HEADS: &str = "SELECT id, name FROM shapes INDEXED BY shape_heads WHERE head_seq IS NOT NULL \
     ORDER BY head_priority DESC, head_seq";

/// The number of a shape, given to it when it is new.
pub(super) fn number(db: &Connection, shape: &Shape) -> rusqlite::Result<i64> {
    let name = shape.name();
    let found = db.prepare_cached("SELECT id FROM shapes WHERE name = ?1")?.query_row([&name], |row| row.get(0));
    match found.optional()? {
        Some(number) => Ok(number),
        None => db
            .prepare_cached("INSERT INTO shapes (name) VALUES (?1) RETURNING id")?
            .query_row([&name], |row| row.get(0)),
    }
}

/// The first jobs of each shape that the glance takes, at most `most` of each. `running` is filled when it matters.
pub(super) fn waiting<'a>(
    db: &Connection,
    glance: &mut Glance<'a>,
    running: &'a OnceCell<Running>,
    most: u32,
) -> rusqlite::Result<Vec<(Shape, Vec<Candidate>)>> {
    let mut shapes = db.prepare_cached(HEADS)?;
    let shapes = shapes.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let mut first = db.prepare_cached(FIRST)?;
    let mut queues = Vec::new();
    let running = || match running.get() {
        Some(running) => Ok::<_, rusqlite::Error>(running),
        None => {
            let found = self::running(db)?;
            Ok(running.get_or_init(|| found))
        }
    };
    for shape in shapes {
        let (number, name) = shape?;
        // A name that is not understood cannot be: whoever opens the file names all of them anew.
        let Some(shape) = Shape::named(&name) else { continue };
        match glance.at(&shape, running)? {
            Look::Take => {}
            Look::Pass => continue,
            Look::Enough => break,
        }
        let candidate = |row: &rusqlite::Row<'_>| {
            let submitted_at = UnixMillis::new(row.get(2)?);
            Ok(Candidate { seq: row.get(0)?, priority: row.get(1)?, submitted_at })
        };
        let jobs: Vec<Candidate> = first.query_map(params![number, most], candidate)?.collect::<Result<_, _>>()?;
        queues.push((shape, jobs));
    }
    Ok(queues)
}

/// What runs, by agent and label.
pub(super) fn running(db: &Connection) -> rusqlite::Result<Running> {
    let mut statement = db.prepare_cached(
        "SELECT ifnull(agent, ''), key, value, count(*) FROM jobs INDEXED BY open_jobs JOIN labels ON labels.seq = jobs.seq \
         WHERE phase IN ('claimed', 'preparing', 'running', 'finishing') AND phase <> 'ended' AND lease_until IS NOT NULL \
         GROUP BY 1, 2, 3",
    )?;
    let mut found = statement.query([])?;
    let mut running = Running::default();
    while let Some(row) = found.next()? {
        running.add(row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_str()?, row.get(3)?);
    }
    Ok(running)
}

/// How many of the same shape are handed out before a job.
pub(super) fn ahead(db: &Connection, id: &str) -> rusqlite::Result<u64> {
    db.prepare_cached(
        "SELECT count(*) FROM jobs AS other INDEXED BY shape_order, jobs AS this WHERE this.id = ?1 \
         AND other.shape = this.shape AND other.phase = 'queued' AND other.parked IS NULL AND other.not_before IS NULL \
         AND (other.priority > this.priority OR (other.priority = this.priority AND other.seq < this.seq))",
    )?
    .query_row([id], |row| row.get(0))
}

/// Names the shapes of open jobs that have none, and of all of them when the limits on groups are others than before. Then drops
/// shapes that no open job has: where each job has one of its own, they would be as many as there ever were jobs.
pub(super) fn refresh(db: &mut Connection, groups: &Groups) -> rusqlite::Result<()> {
    // Of each dropped shape, the database would look through all jobs for one that has it.
    db.pragma_update(None, "foreign_keys", "OFF")?;
    refreshed(db, groups)?;
    db.pragma_update(None, "foreign_keys", "ON")
}

fn refreshed(db: &mut Connection, groups: &Groups) -> rusqlite::Result<()> {
    let now = serde_json::to_string(groups).unwrap_or_default();
    let begun = db.transaction()?;
    let before: String = begun.query_row("SELECT groups FROM routing", [], |row| row.get(0))?;
    let which = if before == now { "AND shape IS NULL" } else { "" };
    let query = format!(
        "SELECT jobs.seq, spec FROM jobs INDEXED BY open_jobs LEFT JOIN specs ON specs.seq = jobs.seq \
         WHERE phase <> 'ended' AND parked IS NULL {which}"
    );
    let found: Vec<(i64, Option<String>)> =
        begun.prepare(&query)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (seq, spec) in found {
        let spec = serde_json::from_str::<JobSpec>(&spec.unwrap_or_default());
        match spec {
            Ok(spec) => {
                let shape = number(&begun, &Shape::of(&spec, groups))?;
                begun.prepare_cached("UPDATE jobs SET shape = ?2 WHERE seq = ?1")?.execute(params![seq, shape])?;
            }
            Err(error) => rows::park(&begun, seq, &error.to_string())?,
        }
    }
    begun.execute("UPDATE routing SET groups = ?1", [&now])?;
    begun.execute(
        "DELETE FROM shapes WHERE id NOT IN \
         (SELECT shape FROM jobs INDEXED BY open_jobs WHERE phase <> 'ended' AND shape IS NOT NULL)",
        [],
    )?;
    begun.commit()
}

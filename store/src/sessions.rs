//! Connections of builders that are logged in, and how many jobs each waits for.
//!
//! This is where dispatchers find demand, so that any of them can serve it and none must remember it.

use crate::nodes::{self, Run};
use cratemill_protocol::{Attempt, BuilderId, JobId, Target, bus::BuildRequest};
use sqlx::PgConnection;

/// A builder that waits.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Waiting {
    #[sqlx(try_from = "i64", rename = "builder_id")]
    pub builder: BuilderId,
    pub connection: String,
    pub node: String,
    pub targets: Vec<String>,
    pub slots: i32,
}

/// A connection that is a builder's now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The builder is to take no jobs.
    pub drain: bool,
    /// Of its node, when the session began: it has missed none of the changes before.
    pub changes: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the builder is disabled")]
    Disabled,
    #[error("this node has been silent for so long that it counts as dead")]
    Node,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The builder's connection is this one now; whatever was before is superseded.
pub async fn open(
    conn: &mut PgConnection,
    builder: BuilderId,
    connection: &str,
    run: &Run,
    targets: &[Target],
) -> Result<Opened, OpenError> {
    // Held from here on, so that logins of one builder, and what an operator changes of it, follow each other.
    let drain: Option<bool> = sqlx::query_scalar(
        "UPDATE builders SET last_seen_at = now() WHERE id = $1 AND enabled RETURNING drain",
    )
    .bind(builder.0)
    .fetch_optional(&mut *conn)
    .await?;
    let drain = drain.ok_or(OpenError::Disabled)?;
    let changes = nodes::hold(conn, run).await?.ok_or(OpenError::Node)?;
    nodes::changed(conn, builder).await?;
    let targets: Vec<&str> = targets.iter().map(|target| &**target).collect();
    sqlx::query(
        "INSERT INTO builder_sessions (builder_id, connection, node, epoch, targets) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (builder_id) DO UPDATE SET connection = excluded.connection, node = excluded.node,
             epoch = excluded.epoch, targets = excluded.targets, slots = 0, in_flight = '{}', serial = 0,
             connected_at = now(), seen_at = now(), requested_at = now()",
    )
    .bind(builder.0)
    .bind(connection)
    .bind(&run.name)
    .bind(run.epoch)
    .bind(targets)
    .execute(conn)
    .await?;
    Ok(Opened { drain, changes })
}

/// The connection ended; false if the builder has another one by now.
pub async fn close(conn: &mut PgConnection, connection: &str) -> sqlx::Result<bool> {
    sqlx::query(
        "UPDATE builders SET last_seen_at = now()
         WHERE id = (SELECT builder_id FROM builder_sessions WHERE connection = $1)",
    )
    .bind(connection)
    .execute(&mut *conn)
    .await?;
    let done = sqlx::query("DELETE FROM builder_sessions WHERE connection = $1")
        .bind(connection)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Records what a builder asked for, unless a newer request is recorded already. False: nothing changed.
///
/// A job may be on its way to the builder while the request is on its way here: it takes one of the slots.
pub async fn request(conn: &mut PgConnection, request: &BuildRequest) -> sqlx::Result<bool> {
    let answered: Vec<String> =
        request.answered.iter().map(|of| format!("{}.{}", of.job, of.attempt)).collect();
    let done = sqlx::query(
        "UPDATE builder_sessions
         SET slots = $3 - cardinality(ARRAY(SELECT unnest(in_flight) EXCEPT SELECT unnest($4::text[]))),
             in_flight = ARRAY(SELECT unnest(in_flight) EXCEPT SELECT unnest($4::text[])),
             serial = $2, seen_at = now(), requested_at = now()
         WHERE connection = $1 AND serial < $2",
    )
    .bind(&request.connection)
    .bind(i64::try_from(request.serial).unwrap_or(i64::MAX))
    .bind(i32::from(request.slots))
    .bind(answered)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A node marks itself several times within so many seconds. One that does not is dead or hears of no job.
const FRESH_S: i32 = 15;

/// Builders that wait, are not held back, and that something is queued for, those that have asked first first; their rows
/// stay locked, and rows that others lock are passed over.
pub async fn waiting(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Waiting>> {
    // Of ten thousand that wait only those are read that are served: whether anything is due is known before any is looked
    // at, the index has them in their turn, and what a scalar subquery asks is asked for one at a time.
    sqlx::query_as(
        "WITH due AS MATERIALIZED (
             SELECT coalesce(array_agg(t.name), '{}') AS names
             FROM (SELECT name FROM targets UNION ALL SELECT 'any') t
             WHERE (SELECT true FROM queue q WHERE q.target = t.name AND q.turn IS NOT NULL
                    ORDER BY q.priority, q.turn, q.job_id LIMIT 1)
         )
         SELECT s.builder_id, s.connection, s.node, s.targets, s.slots FROM builder_sessions s
         WHERE (SELECT names <> '{}' FROM due)
           AND ((SELECT 'any' = ANY(names) FROM due) OR s.targets && (SELECT names FROM due))
           AND s.slots > 0
           AND coalesce((SELECT n.seen_at FROM nodes n WHERE n.name = s.node AND n.epoch = s.epoch), s.seen_at)
               > now() - make_interval(secs => $2)
           AND (SELECT b.enabled AND NOT b.drain FROM builders b WHERE b.id = s.builder_id)
           AND coalesce((SELECT f.paused_until <= now() FROM builder_faults f WHERE f.builder_id = s.builder_id), true)
         ORDER BY s.requested_at, s.builder_id LIMIT $1 FOR UPDATE OF s SKIP LOCKED",
    )
    .bind(limit)
    .bind(FRESH_S)
    .fetch_all(conn)
    .await
}

/// An attempt that ends.
#[derive(Debug, Clone, Copy)]
pub struct Gone {
    pub builder: BuilderId,
    pub job: JobId,
    pub attempt: Attempt,
    /// Its builder took it.
    pub accepted: bool,
}

/// Attempts ended: they are not on their way to their builders any more. One that never got there, or was not taken, gives
/// its slot back to the builder that waits for it; returns how many builders got some. Locks sessions in one order.
pub async fn give_back(conn: &mut PgConnection, gone: &[Gone]) -> sqlx::Result<u64> {
    let given: i64 = sqlx::query_scalar(
        "WITH gone AS (SELECT * FROM unnest($1::bigint[], $2::text[], $3::bool[]) AS g (builder, name, accepted)),
         held AS (
             SELECT builder_id, in_flight FROM builder_sessions s
             WHERE EXISTS (SELECT FROM gone g WHERE g.builder = s.builder_id AND g.name = ANY(s.in_flight))
             ORDER BY builder_id FOR UPDATE
         ), mine AS (
             SELECT h.builder_id, array_agg(g.name) AS names, count(*) FILTER (WHERE NOT g.accepted)::integer AS free
             FROM held h JOIN gone g ON g.builder = h.builder_id AND g.name = ANY(h.in_flight) GROUP BY h.builder_id
         ), given AS (
             UPDATE builder_sessions s
             SET slots = s.slots + m.free,
                 in_flight = ARRAY(SELECT unnest(s.in_flight) EXCEPT SELECT unnest(m.names))
             FROM mine m WHERE s.builder_id = m.builder_id RETURNING m.free
         )
         SELECT count(*) FROM given WHERE free > 0",
    )
    .bind(gone.iter().map(|of| of.builder.0).collect::<Vec<_>>())
    .bind(gone.iter().map(|of| format!("{}.{}", of.job, of.attempt)).collect::<Vec<_>>())
    .bind(gone.iter().map(|of| of.accepted).collect::<Vec<_>>())
    .fetch_one(conn)
    .await?;
    Ok(given.unsigned_abs())
}

/// Which node holds the builder's connection.
pub async fn node_of(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("SELECT node FROM builder_sessions WHERE builder_id = $1")
        .bind(builder.0)
        .fetch_optional(conn)
        .await
}

/// The builder's connection; every other of it is superseded.
pub async fn connection_of(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("SELECT connection FROM builder_sessions WHERE builder_id = $1")
        .bind(builder.0)
        .fetch_optional(conn)
        .await
}

/// Ends the sessions of runs that have been silent for `silent_s` seconds, and forgets those: they died.
pub async fn expire(conn: &mut PgConnection, silent_s: i32) -> sqlx::Result<Vec<(BuilderId, String)>> {
    // From here on nobody logs in there.
    let silent = nodes::silent(conn, silent_s).await?;
    if silent.is_empty() {
        return Ok(Vec::new());
    }
    let (names, epochs): (Vec<&str>, Vec<i64>) = silent.iter().map(|run| (&*run.name, run.epoch)).unzip();
    // Locked in one order, like everywhere.
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "WITH held AS (SELECT builder_id FROM builder_sessions
                       WHERE (node, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
                       ORDER BY builder_id FOR UPDATE)
         DELETE FROM builder_sessions s USING held, builders b
         WHERE s.builder_id = held.builder_id AND b.id = held.builder_id RETURNING b.id, b.name",
    )
    .bind(names)
    .bind(epochs)
    .fetch_all(&mut *conn)
    .await?;
    nodes::forget(conn, &silent).await?;
    Ok(rows.into_iter().map(|(id, name)| (BuilderId(id), name)).collect())
}

//! Connections of builders that are logged in, and how many jobs each waits for.
//!
//! This is where dispatchers find demand, so that any of them can serve it and none must remember it.

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

/// The builder's connection is this one now; whatever was before is superseded.
pub async fn open(
    conn: &mut PgConnection,
    builder: BuilderId,
    connection: &str,
    node: &str,
    targets: &[Target],
) -> sqlx::Result<()> {
    let targets: Vec<&str> = targets.iter().map(|target| &**target).collect();
    sqlx::query(
        "INSERT INTO builder_sessions (builder_id, connection, node, targets) VALUES ($1, $2, $3, $4)
         ON CONFLICT (builder_id) DO UPDATE SET connection = excluded.connection, node = excluded.node,
             targets = excluded.targets, slots = 0, in_flight = '{}', serial = 0, connected_at = now(), seen_at = now(), requested_at = now()",
    )
    .bind(builder.0)
    .bind(connection)
    .bind(node)
    .bind(targets)
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE builders SET last_seen_at = now() WHERE id = $1")
        .bind(builder.0)
        .execute(conn)
        .await?;
    Ok(())
}

/// The connection ended; false if the builder has another one by now.
pub async fn close(conn: &mut PgConnection, connection: &str) -> sqlx::Result<bool> {
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

/// A node marks its connections several times within so many seconds. One that does not is dead or hears of no job.
const FRESH_S: i32 = 15;

/// Builders that wait and that something is queued for, those that have asked first first; their rows stay locked, and
/// rows that others lock are passed over.
pub async fn waiting(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Waiting>> {
    sqlx::query_as(
        "WITH due AS MATERIALIZED (
             SELECT t.name FROM (SELECT name FROM targets UNION ALL SELECT 'any') t
             WHERE EXISTS (SELECT FROM jobs j WHERE j.state = 'queued' AND j.run_at <= now() AND j.target = t.name)
         )
         SELECT s.builder_id, s.connection, s.node, s.targets, s.slots
         FROM builder_sessions s JOIN builders b ON b.id = s.builder_id
         WHERE s.slots > 0 AND s.seen_at > now() - make_interval(secs => $2) AND b.enabled AND NOT b.drain
           AND EXISTS (SELECT FROM due WHERE due.name = 'any' OR due.name = ANY(s.targets))
         ORDER BY s.requested_at, s.builder_id LIMIT $1 FOR UPDATE OF s SKIP LOCKED",
    )
    .bind(limit)
    .bind(FRESH_S)
    .fetch_all(conn)
    .await
}

/// An attempt ended: it is not on its way to its builder any more. True: it never got there, or was not taken, and the
/// builder that waits for it got its slot back.
pub async fn give_back(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<bool> {
    let given: Option<bool> = sqlx::query_scalar(
        "UPDATE builder_sessions s
         SET slots = s.slots + (a.accepted_at IS NULL)::integer,
             in_flight = array_remove(s.in_flight, a.job_id || '.' || a.attempt)
         FROM attempts a
         WHERE a.job_id = $1 AND a.attempt = $2 AND s.builder_id = a.builder_id
           AND a.job_id || '.' || a.attempt = ANY(s.in_flight)
         RETURNING a.accepted_at IS NULL",
    )
    .bind(job.0)
    .bind(attempt.0)
    .fetch_optional(conn)
    .await?;
    Ok(given == Some(true))
}

/// Which node holds the builder's connection.
pub async fn node_of(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("SELECT node FROM builder_sessions WHERE builder_id = $1")
        .bind(builder.0)
        .fetch_optional(conn)
        .await
}

/// The connections of a node whose process just started and serves nobody yet: none of them can still be open.
pub async fn close_all_of_node(conn: &mut PgConnection, node: &str) -> sqlx::Result<u64> {
    let done = sqlx::query("DELETE FROM builder_sessions WHERE node = $1").bind(node).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Marks connections as alive, in one statement for all of a node, and tells which have a session, and whether their
/// builder is to drain: one that expired, is another connection's by now, or is of a builder that was disabled has none.
pub async fn seen(conn: &mut PgConnection, connections: &[String]) -> sqlx::Result<Vec<(String, bool)>> {
    // Locked in one order, like everywhere.
    sqlx::query_as(
        "WITH held AS (SELECT s.builder_id, b.drain FROM builder_sessions s JOIN builders b ON b.id = s.builder_id
                       WHERE s.connection = ANY($1) AND b.enabled ORDER BY s.builder_id FOR UPDATE OF s)
         UPDATE builder_sessions s SET seen_at = now() FROM held
         WHERE s.builder_id = held.builder_id RETURNING s.connection, held.drain",
    )
    .bind(connections)
    .fetch_all(conn)
    .await
}

/// Ends sessions whose node has not spoken of them for `silent_s` seconds: it died.
pub async fn expire(conn: &mut PgConnection, silent_s: i32) -> sqlx::Result<Vec<(BuilderId, String)>> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "DELETE FROM builder_sessions s USING builders b
         WHERE b.id = s.builder_id AND s.seen_at < now() - make_interval(secs => $1)
         RETURNING b.id, b.name",
    )
    .bind(silent_s)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(id, name)| (BuilderId(id), name)).collect())
}

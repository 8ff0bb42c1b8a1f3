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
    let (jobs, attempts): (Vec<i64>, Vec<i32>) =
        request.answered.iter().map(|of| (of.job.0, of.attempt.0)).unzip();
    let done = sqlx::query(
        "WITH asks AS (SELECT * FROM builder_sessions WHERE connection = $1 AND serial < $2 FOR UPDATE),
              unknown AS (SELECT array_agg(j.id) AS ids, count(*)::integer AS count
                          FROM asks JOIN jobs j ON j.id = ANY(asks.in_flight)
                          WHERE (j.id, j.attempt) NOT IN (SELECT * FROM unnest($4::bigint[], $5::int[])))
         UPDATE builder_sessions s
         SET slots = greatest($3 - unknown.count, 0), in_flight = coalesce(unknown.ids, '{}'), serial = $2,
             seen_at = now(), requested_at = now()
         FROM asks, unknown WHERE s.builder_id = asks.builder_id",
    )
    .bind(&request.connection)
    .bind(i64::try_from(request.serial).unwrap_or(i64::MAX))
    .bind(i32::from(request.slots))
    .bind(jobs)
    .bind(attempts)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

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
         WHERE s.slots > 0 AND b.enabled AND NOT b.drain
           AND EXISTS (SELECT FROM due WHERE due.name = 'any' OR due.name = ANY(s.targets))
         ORDER BY s.requested_at, s.builder_id LIMIT $1 FOR UPDATE OF s SKIP LOCKED",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Takes a slot for each job from the builder that gets it.
pub(crate) async fn take_slots(conn: &mut PgConnection, jobs: &[i64], builders: &[i64]) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE builder_sessions s
         SET slots = greatest(s.slots - t.count, 0), in_flight = s.in_flight || t.jobs
         FROM (SELECT builder_id, array_agg(job) AS jobs, count(*)::integer AS count
               FROM unnest($1::bigint[], $2::bigint[]) AS pairs (job, builder_id) GROUP BY builder_id) t
         WHERE s.builder_id = t.builder_id",
    )
    .bind(jobs)
    .bind(builders)
    .execute(conn)
    .await?;
    Ok(())
}

/// How we know that the builder of an attempt that nobody accepted is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It or its node said that it does not take the job.
    Answer,
    /// None but that its node has marked the connection since, if it did.
    Mark,
}

/// An attempt ended: if no request knows of it yet, none needs to any more. True: its builder got its slot back, because
/// it never took the job, or because it asked since and was given one slot less.
pub async fn give_back(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    sign: Sign,
) -> sqlx::Result<bool> {
    let given: Option<bool> = sqlx::query_scalar(
        "WITH ended AS (
             SELECT s.builder_id, CASE WHEN a.accepted_at IS NULL THEN $3 OR s.seen_at > a.assigned_at
                                       ELSE s.requested_at > a.assigned_at END AS waits
             FROM attempts a JOIN builder_sessions s ON s.builder_id = a.builder_id
             WHERE a.job_id = $1 AND a.attempt = $2 AND $1 = ANY(s.in_flight) FOR UPDATE OF s
         )
         UPDATE builder_sessions s
         SET slots = s.slots + ended.waits::integer, in_flight = array_remove(s.in_flight, $1)
         FROM ended WHERE s.builder_id = ended.builder_id RETURNING ended.waits",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(sign == Sign::Answer)
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

/// Marks connections as alive, in one statement for all of a node, and tells which have a session: one that expired, is
/// another connection's by now, or is of a builder that was disabled has none.
pub async fn seen(conn: &mut PgConnection, connections: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "UPDATE builder_sessions s SET seen_at = now() FROM builders b
         WHERE s.connection = ANY($1) AND b.id = s.builder_id AND b.enabled RETURNING s.connection",
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

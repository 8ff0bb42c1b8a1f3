//! Connections of builders that are logged in, and how many jobs each waits for.
//!
//! This is where dispatchers find demand, so that any of them can serve it and none must remember it.

use crate::nodes::{self, Run};
use cratemill_protocol::{Attempt, BuilderId, JobId, Target, bus::BuildRequest};
use sqlx::PgConnection;
use std::collections::{BTreeMap, HashMap};

/// A builder that waits.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Waiting {
    #[sqlx(try_from = "i64", rename = "builder_id")]
    pub builder: BuilderId,
    pub connection: String,
    pub node: String,
    pub targets: Vec<String>,
    pub slots: i32,
    /// How many jobs are due in all, without those of unserved targets; counted no further than builders were asked for.
    pub due: i64,
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

/// The run takes no more jobs: its sessions offer no slot, now or by what is still on its way, and what was on its way to
/// them gives none back.
pub async fn hold_back(conn: &mut PgConnection, run: &Run) -> sqlx::Result<()> {
    // Locked in one order, like everywhere. No request has a higher serial.
    sqlx::query(
        "WITH held AS (SELECT builder_id FROM builder_sessions WHERE node = $1 AND epoch = $2
                       ORDER BY builder_id FOR UPDATE)
         UPDATE builder_sessions s SET slots = 0, in_flight = '{}', serial = $3
         FROM held WHERE s.builder_id = held.builder_id",
    )
    .bind(&run.name)
    .bind(run.epoch)
    .bind(i64::MAX)
    .execute(conn)
    .await?;
    Ok(())
}

/// Records what a builder asked for, unless a newer request is recorded already. False: nothing changed.
pub async fn request(conn: &mut PgConnection, request: &BuildRequest) -> sqlx::Result<bool> {
    Ok(requests(conn, std::slice::from_ref(request)).await? == 1)
}

/// Records what builders asked for, of each connection the newest, unless a newer one is recorded already; returns how many
/// are new.
///
/// A job may be on its way to a builder while its request is on its way here: it takes one of the slots. Locks sessions in
/// one order, until the caller's transaction ends.
pub async fn requests(conn: &mut PgConnection, requests: &[BuildRequest]) -> sqlx::Result<u64> {
    let mut newest: HashMap<&str, &BuildRequest> = HashMap::with_capacity(requests.len());
    for request in requests {
        let known = newest.entry(&request.connection).or_insert(request);
        if known.serial < request.serial {
            *known = request;
        }
    }
    let requests: Vec<_> = newest.into_values().collect();
    // By a statement of its own: the next one must see the leases of whoever held a session while this one waited.
    sqlx::query("SELECT FROM builder_sessions WHERE connection = ANY($1) ORDER BY builder_id FOR UPDATE")
        .bind(requests.iter().map(|of| of.connection.as_str()).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await?;
    let done = sqlx::query(
        "WITH held AS (
             SELECT s.builder_id, s.in_flight, a.serial, a.slots, string_to_array(a.answered, ' ') AS answered
             FROM unnest($1::text[], $2::bigint[], $3::int[], $4::text[]) AS a (connection, serial, slots, answered)
             JOIN builder_sessions s ON s.connection = a.connection
             WHERE s.serial < a.serial
         ), kept AS (
             -- An attempt that has ended is on its way to nobody.
             SELECT h.builder_id, h.serial, h.slots, ARRAY(
                 SELECT f FROM unnest(h.in_flight) AS f
                 WHERE f <> ALL (h.answered)
                   AND (SELECT l.attempt = split_part(f, '.', 2)::integer FROM leases l
                        WHERE l.job_id = split_part(f, '.', 1)::bigint)
             ) AS in_flight
             FROM held h
         )
         UPDATE builder_sessions s
         SET slots = k.slots - cardinality(k.in_flight), in_flight = k.in_flight, serial = k.serial, seen_at = now(),
             requested_at = now()
         FROM kept k WHERE s.builder_id = k.builder_id",
    )
    .bind(requests.iter().map(|of| of.connection.as_str()).collect::<Vec<_>>())
    .bind(requests.iter().map(|of| i64::try_from(of.serial).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(requests.iter().map(|of| i32::from(of.slots)).collect::<Vec<_>>())
    .bind(requests.iter().map(|of| names(of.answered.iter().map(|of| (of.job, of.attempt)))).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// As sessions remember attempts; [`crate::queue::assign`] adds them.
fn names(attempts: impl Iterator<Item = (JobId, Attempt)>) -> String {
    attempts.map(|(job, attempt)| format!("{job}.{attempt}")).collect::<Vec<_>>().join(" ")
}

type Attempts = Vec<(JobId, Attempt)>;

/// Builders in the order in which sessions are locked, and what is each one's.
fn by_builder(all: impl Iterator<Item = (BuilderId, JobId, Attempt)>) -> (Vec<i64>, Vec<Attempts>) {
    let mut builders: BTreeMap<i64, Attempts> = BTreeMap::new();
    for (builder, job, attempt) in all {
        builders.entry(builder.0).or_default().push((job, attempt));
    }
    builders.into_iter().unzip()
}

/// A node marks itself several times within so many seconds. One that does not is dead or hears of no job.
const FRESH_S: i32 = 15;

/// Of a session `s`: its builder wants jobs, may have some, and would hear of them.
macro_rules! waits {
    () => {
        "s.slots > 0
           AND coalesce((SELECT n.seen_at FROM nodes n WHERE n.name = s.node AND n.epoch = s.epoch), s.seen_at)
               > now() - make_interval(secs => $2)
           AND (SELECT b.enabled AND NOT b.drain FROM builders b WHERE b.id = s.builder_id)
           AND coalesce((SELECT f.paused_until <= now() FROM builder_faults f WHERE f.builder_id = s.builder_id), true)"
    };
}

/// Builders that wait, are not held back, and that something is queued for, those that have asked first first, and no more
/// than jobs are due; their rows stay locked, and rows that others lock are passed over. Jobs of targets that are known to be
/// [`unserved`] do not count.
pub async fn waiting(conn: &mut PgConnection, limit: i64, unserved: &[String]) -> sqlx::Result<Vec<Waiting>> {
    // Of ten thousand that wait only those are read, and locked, that are served: what is due is known before any is looked
    // at, the index has them in their turn, and what a scalar subquery asks is asked for one at a time.
    sqlx::query_as(concat!(
        "WITH due AS MATERIALIZED (
             SELECT coalesce(array_agg(name) FILTER (WHERE jobs > 0), '{}') AS names,
                    least(sum(jobs), $1)::bigint AS jobs
             FROM (
                 SELECT t.name, (SELECT count(*) FROM (
                     SELECT FROM queue q WHERE q.target = t.name AND q.turn IS NOT NULL LIMIT $1) AS first) AS jobs
                 FROM (SELECT name FROM targets UNION ALL SELECT 'any') t WHERE t.name <> ALL($3)
                 -- Counted once, though it is used twice.
                 OFFSET 0
             ) AS lines
         )
         SELECT s.builder_id, s.connection, s.node, s.targets, s.slots, (SELECT jobs FROM due) AS due
         FROM builder_sessions s
         WHERE (SELECT names <> '{}' FROM due)
           AND ((SELECT 'any' = ANY(names) FROM due) OR s.targets && (SELECT names FROM due))
           AND ",
        waits!(),
        " ORDER BY s.requested_at, s.builder_id LIMIT (SELECT jobs FROM due) FOR UPDATE OF s SKIP LOCKED",
    ))
    .bind(limit)
    .bind(FRESH_S)
    .bind(unserved)
    .fetch_all(conn)
    .await
}

/// Targets that jobs are due for and no builder waits with, beside those that are `known`.
pub async fn unserved(conn: &mut PgConnection, known: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(concat!(
        "SELECT t.name FROM targets t
         WHERE t.name <> ALL($1)
           AND (SELECT true FROM queue q WHERE q.target = t.name AND q.turn IS NOT NULL LIMIT 1)
           AND NOT EXISTS (SELECT FROM builder_sessions s WHERE t.name = ANY(s.targets) AND ",
        waits!(),
        ")"
    ))
    .bind(known)
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

/// Attempts ended that never got to their builders, or were not taken: each gives its slot back to the builder that waits
/// for it. Returns how many builders got some. Of the others' slots the builders' next requests speak. Locks sessions in
/// one order.
pub async fn give_back(conn: &mut PgConnection, gone: &[Gone]) -> sqlx::Result<u64> {
    let free = gone.iter().filter(|of| !of.accepted).map(|of| (of.builder, of.job, of.attempt));
    let (builders, jobs) = by_builder(free);
    if builders.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(
        "WITH held AS (
             SELECT g.builder, string_to_array(g.jobs, ' ') AS jobs
             FROM unnest($1::bigint[], $2::text[]) AS g (builder, jobs)
             JOIN builder_sessions s ON s.builder_id = g.builder
             WHERE s.in_flight && string_to_array(g.jobs, ' ') ORDER BY g.builder FOR UPDATE OF s
         )
         UPDATE builder_sessions s
         SET slots = s.slots + (SELECT count(*)::integer FROM unnest(s.in_flight) AS f WHERE f = ANY (h.jobs)),
             in_flight = ARRAY(SELECT f FROM unnest(s.in_flight) AS f WHERE f <> ALL (h.jobs))
         FROM held h WHERE s.builder_id = h.builder",
    )
    .bind(builders)
    .bind(jobs.into_iter().map(|jobs| names(jobs.into_iter())).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
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

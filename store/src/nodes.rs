//! Runs of API nodes: which of them live, and whether somebody has changed a session of theirs.
//!
//! Whoever needs several locks takes those of builders first, then nodes, then sessions.

use cratemill_protocol::BuilderId;
use sqlx::PgConnection;

/// One process, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Run {
    /// Of the node: unlike that of any other that runs.
    pub name: String,
    /// Unix milliseconds of its start.
    pub epoch: i64,
}

/// A process that just started and serves nobody yet: what earlier ones of its name left behind is over.
pub async fn forget_earlier(conn: &mut PgConnection, run: &Run) -> sqlx::Result<()> {
    sqlx::query("SELECT FROM nodes WHERE name = $1 AND epoch <> $2 ORDER BY epoch FOR UPDATE")
        .bind(&run.name)
        .bind(run.epoch)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "WITH left_behind AS (SELECT builder_id FROM builder_sessions
                              WHERE node = $1 AND epoch IS DISTINCT FROM $2 ORDER BY builder_id FOR UPDATE)
         DELETE FROM builder_sessions s USING left_behind l WHERE s.builder_id = l.builder_id",
    )
    .bind(&run.name)
    .bind(run.epoch)
    .execute(&mut *conn)
    .await?;
    sqlx::query("DELETE FROM nodes WHERE name = $1 AND epoch <> $2")
        .bind(&run.name)
        .bind(run.epoch)
        .execute(conn)
        .await?;
    Ok(())
}

/// From here on builders may log in on it, for as long as it marks itself.
pub async fn register(conn: &mut PgConnection, run: &Run) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO nodes (name, epoch) VALUES ($1, $2) ON CONFLICT (name, epoch) DO UPDATE SET seen_at = now()",
    )
    .bind(&run.name)
    .bind(run.epoch)
    .execute(conn)
    .await?;
    Ok(())
}

/// The run lives; tells how often others have changed a session of it. None: it was silent for too long and has no
/// sessions any more, or never registered.
pub async fn mark(conn: &mut PgConnection, run: &Run) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("UPDATE nodes SET seen_at = now() WHERE name = $1 AND epoch = $2 RETURNING changes")
        .bind(&run.name)
        .bind(run.epoch)
        .fetch_optional(conn)
        .await
}

/// A connection that a run holds, and what its builder may do.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Session {
    pub connection: String,
    #[sqlx(try_from = "i64", rename = "builder_id")]
    pub builder: BuilderId,
    pub name: String,
    pub enabled: bool,
    pub drain: bool,
}

/// All that the run holds: a connection whose session expired, or is another's by now, is not among them.
pub async fn sessions(conn: &mut PgConnection, run: &Run) -> sqlx::Result<Vec<Session>> {
    sqlx::query_as(
        "SELECT s.connection, s.builder_id, b.name, b.enabled, b.drain
         FROM builder_sessions s JOIN builders b ON b.id = s.builder_id WHERE s.node = $1 AND s.epoch = $2",
    )
    .bind(&run.name)
    .bind(run.epoch)
    .fetch_all(conn)
    .await
}

/// Somebody who holds the builder's row changes the session of it: the run that has it will look.
pub(crate) async fn changed(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE nodes n SET changes = n.changes + 1 FROM builder_sessions s
         WHERE s.builder_id = $1 AND n.name = s.node AND n.epoch = s.epoch",
    )
    .bind(builder.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// Keeps the run from being forgotten until the transaction ends; tells its `changes`.
pub(crate) async fn hold(conn: &mut PgConnection, run: &Run) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("SELECT changes FROM nodes WHERE name = $1 AND epoch = $2 FOR KEY SHARE")
        .bind(&run.name)
        .bind(run.epoch)
        .fetch_optional(conn)
        .await
}

/// Runs that have been silent for so long, locked; one that just says that it lives, or lets a builder in, is passed over.
pub(crate) async fn silent(conn: &mut PgConnection, silent_s: i32) -> sqlx::Result<Vec<Run>> {
    sqlx::query_as(
        "SELECT name, epoch FROM nodes WHERE seen_at < now() - make_interval(secs => $1) FOR UPDATE SKIP LOCKED",
    )
    .bind(silent_s)
    .fetch_all(conn)
    .await
}

/// They have no sessions.
pub(crate) async fn forget(conn: &mut PgConnection, runs: &[Run]) -> sqlx::Result<()> {
    let (names, epochs): (Vec<&str>, Vec<i64>) = runs.iter().map(|run| (&*run.name, run.epoch)).unzip();
    sqlx::query("DELETE FROM nodes WHERE (name, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))")
        .bind(names)
        .bind(epochs)
        .execute(conn)
        .await?;
    Ok(())
}

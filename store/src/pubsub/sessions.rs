//! Who is connected, and what it has.

use super::{Left, Membership};
use sqlx::PgConnection;
use std::time::Duration;
use uuid::Uuid;

/// A connection that has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Attached {
    pub epoch: i64,
    /// Up to this message of the stream the client has everything.
    pub confirmed: i64,
}

/// The node that has the session's connection, as far as anybody knows.
pub async fn node(conn: &mut PgConnection, session: Uuid) -> sqlx::Result<Option<String>> {
    let node: Option<Option<String>> = sqlx::query_scalar("SELECT node FROM pubsub_sessions WHERE id = $1")
        .bind(session)
        .fetch_optional(conn)
        .await?;
    Ok(node.flatten())
}

/// Takes the session, which is made if it is not there. None if it is somebody else's.
pub async fn attach(
    conn: &mut PgConnection,
    session: Uuid,
    owner: Option<&str>,
    node: &str,
) -> sqlx::Result<Option<Attached>> {
    sqlx::query_as(
        "INSERT INTO pubsub_sessions AS s (id, owner, node) VALUES ($1, $2, $3)
         ON CONFLICT (id) DO UPDATE
         SET epoch = s.epoch + 1, node = excluded.node, seen_at = now(), owner = coalesce(s.owner, excluded.owner)
         WHERE s.owner IS NULL OR s.owner = excluded.owner
         RETURNING epoch, confirmed",
    )
    .bind(session)
    .bind(owner)
    .bind(node)
    .fetch_optional(conn)
    .await
}

pub async fn memberships(conn: &mut PgConnection, session: Uuid) -> sqlx::Result<Vec<Membership>> {
    sqlx::query_as(
        "SELECT subscription_id, \"group\", since FROM pubsub_members WHERE session_id = $1 ORDER BY since",
    )
    .bind(session)
    .fetch_all(conn)
    .await
}

/// How far clients are, of sessions in these epochs.
pub async fn confirm(conn: &mut PgConnection, confirmed: &[(Uuid, i64, i64)]) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE pubsub_sessions s SET confirmed = greatest(s.confirmed, c.confirmed), seen_at = now()
         FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS c (id, epoch, confirmed) ORDER BY id) c
         WHERE s.id = c.id AND s.epoch = c.epoch",
    )
    .bind(confirmed.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
    .bind(confirmed.iter().map(|(_, epoch, _)| *epoch).collect::<Vec<_>>())
    .bind(confirmed.iter().map(|(.., confirmed)| *confirmed).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
}

/// Its connection has ended.
pub async fn detach(conn: &mut PgConnection, session: Uuid, epoch: i64, confirmed: i64) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE pubsub_sessions SET node = NULL, seen_at = now(), confirmed = greatest(confirmed, $3)
         WHERE id = $1 AND epoch = $2",
    )
    .bind(session)
    .bind(epoch)
    .bind(confirmed)
    .execute(conn)
    .await
    .map(drop)
}

/// Forgets sessions that have been gone for so long, and subscriptions that nobody has then. Says which groups are empty.
pub async fn forget(conn: &mut PgConnection, after: Duration, limit: i64) -> sqlx::Result<Vec<Left>> {
    let gone: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM pubsub_sessions WHERE node IS NULL AND seen_at < now() - make_interval(secs => $1)
         ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED",
    )
    .bind(after.as_secs_f64())
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    let mut left = Vec::new();
    for session in gone {
        for Membership { subscription, .. } in memberships(&mut *conn, session).await? {
            left.extend(super::members::leave(&mut *conn, session, subscription).await?.unwrap_or_default());
        }
        sqlx::query("DELETE FROM pubsub_sessions WHERE id = $1").bind(session).execute(&mut *conn).await?;
    }
    Ok(left)
}

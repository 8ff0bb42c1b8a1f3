//! Who is connected, and what it has.

use super::{
    Membership,
    members::{self, Left},
};
use cratemill_protocol::SubscriptionId;
use sqlx::PgConnection;
use std::{collections::BTreeSet, time::Duration};
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
        "SELECT m.subscription_id, m.\"group\", coalesce(g.since, m.since) AS since, g.id AS group_id
         FROM pubsub_members m LEFT JOIN pubsub_groups g USING (subscription_id, \"group\")
         WHERE m.session_id = $1 ORDER BY m.since",
    )
    .bind(session)
    .fetch_all(conn)
    .await
}

/// How far clients are, of sessions in these epochs. Returns the sessions that are in them.
pub async fn confirm(conn: &mut PgConnection, confirmed: &[(Uuid, i64, i64)]) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "UPDATE pubsub_sessions s SET confirmed = greatest(s.confirmed, c.confirmed), seen_at = now()
         FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS c (id, epoch, confirmed) ORDER BY id) c
         WHERE s.id = c.id AND s.epoch = c.epoch RETURNING s.id",
    )
    .bind(confirmed.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
    .bind(confirmed.iter().map(|(_, epoch, _)| *epoch).collect::<Vec<_>>())
    .bind(confirmed.iter().map(|(.., confirmed)| *confirmed).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
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

/// Sessions that nobody was connected with for so long.
pub async fn old(conn: &mut PgConnection, after: Duration, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "SELECT id FROM pubsub_sessions WHERE seen_at < now() - make_interval(secs => $1) ORDER BY seen_at LIMIT $2",
    )
    .bind(after.as_secs_f64())
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Forgets one of them, unless somebody came meanwhile, and subscriptions that nobody has then. Returns the ids of groups
/// that are gone. In a transaction of the caller's.
pub async fn forget(conn: &mut PgConnection, session: Uuid, after: Duration) -> sqlx::Result<Vec<i64>> {
    let epoch: Option<i64> = sqlx::query_scalar(
        "SELECT epoch FROM pubsub_sessions WHERE id = $1 AND seen_at < now() - make_interval(secs => $2)
         FOR UPDATE SKIP LOCKED",
    )
    .bind(session)
    .bind(after.as_secs_f64())
    .fetch_optional(&mut *conn)
    .await?;
    let mut gone = Vec::new();
    let Some(epoch) = epoch else { return Ok(gone) };
    // Each once, and in the order in which everybody does it: others forget sessions that have the same ones.
    let all = memberships(&mut *conn, session).await?;
    let subscriptions: BTreeSet<Uuid> = all.iter().map(|membership| membership.subscription.0).collect();
    for subscription in subscriptions {
        let left = members::leave(&mut *conn, (session, epoch), SubscriptionId(subscription)).await?;
        if let Left::Done(groups) = left {
            gone.extend(groups);
        }
    }
    sqlx::query("DELETE FROM pubsub_sessions WHERE id = $1").bind(session).execute(conn).await?;
    Ok(gone)
}

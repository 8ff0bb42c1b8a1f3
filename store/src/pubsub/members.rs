//! Who subscribes to what. Changes of one subscription come one after the other.

use cratemill_protocol::SubscriptionId;
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// From now on.
    Done {
        since: i64,
        group: Option<i64>,
    },
    /// It was a member before.
    Before {
        since: i64,
        group: Option<i64>,
    },
    TooMany,
    /// Another connection has the session.
    Superseded,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// The ids of groups that are gone with it.
    Done(Vec<i64>),
    /// The session had none of it.
    NotThere,
    /// Another connection has the session.
    Superseded,
}

/// Subscribes a session in this epoch, which makes the subscription if it is not there. In a transaction of the caller's.
pub async fn join(
    conn: &mut PgConnection,
    (session, epoch): (Uuid, i64),
    subscription: SubscriptionId,
    group: &str,
    since: i64,
    (most, most_groups): (i64, i64),
) -> sqlx::Result<Joined> {
    let count: Option<(i64, i64)> = sqlx::query_as(
        "SELECT (SELECT count(*) FROM pubsub_members m WHERE m.session_id = s.id),
                (SELECT count(*) FROM pubsub_members m WHERE m.session_id = s.id AND \"group\" <> '')
         FROM pubsub_sessions s WHERE id = $1 AND epoch = $2 FOR UPDATE",
    )
    .bind(session)
    .bind(epoch)
    .fetch_optional(&mut *conn)
    .await?;
    let Some((count, groups)) = count else { return Ok(Joined::Superseded) };
    // Whoever leaves it as the last waits for this, or this for it and makes it again: hence the update, which locks it.
    sqlx::query(
        "INSERT INTO pubsub_subscriptions (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET id = excluded.id",
    )
    .bind(subscription.0)
    .execute(&mut *conn)
    .await?;
    let before: Option<i64> = sqlx::query_scalar(
        "SELECT since FROM pubsub_members WHERE session_id = $1 AND subscription_id = $2 AND \"group\" = $3",
    )
    .bind(session)
    .bind(subscription.0)
    .bind(group)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(since) = before {
        let group = group_id(conn, subscription, group).await?;
        return Ok(Joined::Before { since, group });
    }
    if count >= most || (!group.is_empty() && groups >= most_groups) {
        return Ok(Joined::TooMany);
    }
    sqlx::query(
        "INSERT INTO pubsub_members (session_id, subscription_id, \"group\", since) VALUES ($1, $2, $3, $4)",
    )
    .bind(session)
    .bind(subscription.0)
    .bind(group)
    .bind(since)
    .execute(&mut *conn)
    .await?;
    if group.is_empty() {
        return Ok(Joined::Done { since, group: None });
    }
    let (id, since) = found(conn, subscription, group, since).await?;
    Ok(Joined::Done { since, group: Some(id) })
}

/// The group, which begins behind this message if it is new, and behind which it does.
async fn found(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    group: &str,
    since: i64,
) -> sqlx::Result<(i64, i64)> {
    sqlx::query(
        "INSERT INTO pubsub_groups (subscription_id, \"group\", since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(subscription.0)
    .bind(group)
    .bind(since)
    .execute(&mut *conn)
    .await?;
    sqlx::query_as("SELECT id, since FROM pubsub_groups WHERE subscription_id = $1 AND \"group\" = $2")
        .bind(subscription.0)
        .bind(group)
        .fetch_one(conn)
        .await
}

async fn group_id(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    group: &str,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("SELECT id FROM pubsub_groups WHERE subscription_id = $1 AND \"group\" = $2")
        .bind(subscription.0)
        .bind(group)
        .fetch_optional(conn)
        .await
}

/// Ends all that a session in this epoch has of a subscription, and the subscription if nobody has any of it then. In a
/// transaction of the caller's.
pub async fn leave(
    conn: &mut PgConnection,
    (session, epoch): (Uuid, i64),
    subscription: SubscriptionId,
) -> sqlx::Result<Left> {
    let current = sqlx::query("SELECT FROM pubsub_sessions WHERE id = $1 AND epoch = $2 FOR UPDATE")
        .bind(session)
        .bind(epoch)
        .fetch_optional(&mut *conn)
        .await?;
    if current.is_none() {
        return Ok(Left::Superseded);
    }
    sqlx::query("SELECT FROM pubsub_subscriptions WHERE id = $1 FOR UPDATE")
        .bind(subscription.0)
        .fetch_optional(&mut *conn)
        .await?;
    let groups: Vec<String> = sqlx::query_scalar(
        "DELETE FROM pubsub_members WHERE session_id = $1 AND subscription_id = $2 RETURNING \"group\"",
    )
    .bind(session)
    .bind(subscription.0)
    .fetch_all(&mut *conn)
    .await?;
    if groups.is_empty() {
        return Ok(Left::NotThere);
    }
    let gone: Vec<i64> = sqlx::query_scalar(
        "DELETE FROM pubsub_groups g WHERE subscription_id = $1 AND NOT EXISTS (
             SELECT FROM pubsub_members m WHERE (m.subscription_id, m.\"group\") = (g.subscription_id, g.\"group\"))
         RETURNING id",
    )
    .bind(subscription.0)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM pubsub_subscriptions s WHERE id = $1 AND NOT EXISTS (
             SELECT FROM pubsub_members m WHERE m.subscription_id = s.id)",
    )
    .bind(subscription.0)
    .execute(conn)
    .await?;
    Ok(Left::Done(gone))
}

/// Whether anybody subscribes to it.
pub async fn exists(conn: &mut PgConnection, subscription: SubscriptionId) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pubsub_subscriptions WHERE id = $1)")
        .bind(subscription.0)
        .fetch_one(conn)
        .await
}

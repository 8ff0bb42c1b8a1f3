//! Who subscribes to what. Changes of one subscription come one after the other.

use super::Left;
use cratemill_protocol::SubscriptionId;
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    Done,
    /// It was a member before, and gets what comes after this message.
    Before(i64),
    TooMany,
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
    most: i64,
) -> sqlx::Result<Joined> {
    let count: Option<i64> = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM pubsub_members m WHERE m.session_id = s.id)
         FROM pubsub_sessions s WHERE id = $1 AND epoch = $2 FOR UPDATE",
    )
    .bind(session)
    .bind(epoch)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(count) = count else { return Ok(Joined::Superseded) };
    sqlx::query("INSERT INTO pubsub_subscriptions (id) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(subscription.0)
        .execute(&mut *conn)
        .await?;
    // Whoever leaves it as the last waits for this, or this for it.
    sqlx::query("SELECT FROM pubsub_subscriptions WHERE id = $1 FOR UPDATE")
        .bind(subscription.0)
        .fetch_optional(&mut *conn)
        .await?
        .ok_or(sqlx::Error::RowNotFound)?;
    let before: Option<i64> = sqlx::query_scalar(
        "SELECT since FROM pubsub_members WHERE session_id = $1 AND subscription_id = $2 AND \"group\" = $3",
    )
    .bind(session)
    .bind(subscription.0)
    .bind(group)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(since) = before {
        return Ok(Joined::Before(since));
    }
    if count >= most {
        return Ok(Joined::TooMany);
    }
    sqlx::query(
        "INSERT INTO pubsub_members (session_id, subscription_id, \"group\", since) VALUES ($1, $2, $3, $4)",
    )
    .bind(session)
    .bind(subscription.0)
    .bind(group)
    .bind(since)
    .execute(conn)
    .await?;
    Ok(Joined::Done)
}

/// Ends all that a session has of a subscription, and the subscription if nobody has any of it then. Says which groups are
/// empty; nothing if the session had none of it. In a transaction of the caller's.
pub async fn leave(
    conn: &mut PgConnection,
    session: Uuid,
    subscription: SubscriptionId,
) -> sqlx::Result<Option<Vec<Left>>> {
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
        return Ok(None);
    }
    let still: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT \"group\" FROM pubsub_members WHERE subscription_id = $1")
            .bind(subscription.0)
            .fetch_all(&mut *conn)
            .await?;
    if still.is_empty() {
        sqlx::query("DELETE FROM pubsub_subscriptions WHERE id = $1")
            .bind(subscription.0)
            .execute(conn)
            .await?;
    }
    let left = groups.into_iter().filter(|group| !group.is_empty() && !still.contains(group));
    Ok(Some(left.map(|group| Left { subscription, group }).collect()))
}

/// Whether anybody subscribes to it.
pub async fn exists(conn: &mut PgConnection, subscription: SubscriptionId) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pubsub_subscriptions WHERE id = $1)")
        .bind(subscription.0)
        .fetch_one(conn)
        .await
}

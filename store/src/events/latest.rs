//! The latest published event of each name, in the order of the stream.

use sqlx::PgConnection;

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Latest {
    /// Its place in the stream.
    pub sequence: i64,
    pub event: String,
    /// JSON.
    pub data: String,
}

/// Up to which place of the stream all is noted.
pub async fn noted(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT last_sequence FROM timeline").fetch_one(conn).await
}

/// The first of those after one place, and up to and with another: no more than `limit`, nor than `bytes`, but one.
pub async fn page(
    conn: &mut PgConnection,
    after: i64,
    until: i64,
    limit: i64,
    bytes: i64,
) -> sqlx::Result<Vec<Latest>> {
    sqlx::query_as(
        "SELECT sequence, event, data FROM (
             SELECT l.sequence, e.event, e.data, sum(octet_length(e.data)) OVER w - octet_length(e.data) AS before
             FROM (SELECT * FROM latest_events WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3) l
             JOIN events e ON e.id = l.event_id
             WINDOW w AS (ORDER BY l.sequence)
         ) AS page WHERE before <= $4 ORDER BY sequence",
    )
    .bind(after)
    .bind(until)
    .bind(limit)
    .bind(bytes)
    .fetch_all(conn)
    .await
}

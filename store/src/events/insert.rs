//! Inserting: what comes at the same moment shares a statement, and so a wait for the disk.

use cratemill_protocol::{CollectionId, EventId, UserId};
use sqlx::PgConnection;

#[derive(Debug, Clone)]
pub struct NewEvent {
    pub id: EventId,
    pub user_id: UserId,
    pub collection_id: CollectionId,
    pub event: String,
    pub timestamp: i64,
    /// JSON.
    pub data: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    Done,
    /// There is no such user any more.
    NoUser,
    /// The user has as many events as one may have.
    TooMany,
}

/// Inserts in this order and says of each what came of it. Those with an id that is there already are done: the answer of
/// the time before got lost.
pub async fn insert(
    conn: &mut PgConnection,
    events: &[NewEvent],
    most_per_user: i64,
) -> sqlx::Result<Vec<Inserted>> {
    let rows: Vec<(bool, bool)> = sqlx::query_as(
        "WITH asked AS (
             SELECT a.*, e.id IS NOT NULL AS is_there
             FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[])
                  WITH ORDINALITY AS a (id, user_id, collection_id, event, timestamp, data, nth)
             LEFT JOIN events e ON e.id = a.id
         ), held AS (
             SELECT id, events FROM users WHERE id = ANY($2) ORDER BY id FOR UPDATE
         ), placed AS (
             SELECT a.*, h.events + row_number() OVER (PARTITION BY a.user_id ORDER BY a.nth) AS of_user
             FROM asked a JOIN held h ON h.id = a.user_id WHERE NOT a.is_there
         ), fit AS (
             SELECT * FROM placed WHERE of_user <= $7
         ), added AS (
             INSERT INTO events (id, user_id, collection_id, event, timestamp, data)
             SELECT id, user_id, collection_id, event, timestamp, data FROM fit ORDER BY nth
             RETURNING timestamp, seq, id
         ), due AS (
             INSERT INTO due_events (timestamp, seq, event_id) SELECT timestamp, seq, id FROM added
         ), counted AS (
             UPDATE users u SET events = f.last
             FROM (SELECT user_id, max(of_user) AS last FROM fit GROUP BY user_id) f WHERE u.id = f.user_id
         )
         SELECT h.id IS NOT NULL, a.is_there OR f.id IS NOT NULL
         FROM asked a LEFT JOIN held h ON h.id = a.user_id LEFT JOIN fit f ON f.nth = a.nth ORDER BY a.nth",
    )
    .bind(events.iter().map(|event| event.id.0).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.user_id.0).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.collection_id.0).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.event.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.timestamp).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.data.as_str()).collect::<Vec<_>>())
    .bind(most_per_user)
    .fetch_all(conn)
    .await?;
    let what = |(has_user, is_in)| match (has_user, is_in) {
        (_, true) => Inserted::Done,
        (false, _) => Inserted::NoUser,
        (true, false) => Inserted::TooMany,
    };
    Ok(rows.into_iter().map(what).collect())
}

//! Publishing what is due, by one process at a time: its term fences all that it writes.

use cratemill_protocol::EventId;
use sqlx::PgConnection;
use uuid::Uuid;

/// On its way to the bus.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Firing {
    /// The order in which they go.
    pub place: i64,
    #[sqlx(try_from = "Uuid")]
    pub id: EventId,
    pub event: String,
    /// Unix seconds.
    pub timestamp: i64,
    /// JSON.
    pub data: String,
}

/// The bus has it, at this place of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Fired {
    pub place: i64,
    pub id: EventId,
    pub sequence: i64,
}

/// What a process begins with that publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Term {
    pub term: i64,
    /// Up to this message of the stream everything is noted.
    pub last_sequence: i64,
}

/// Begins a term; that of whoever was before is over.
pub async fn begin(conn: &mut PgConnection) -> sqlx::Result<Term> {
    sqlx::query_as("UPDATE timeline SET term = term + 1 RETURNING term, last_sequence").fetch_one(conn).await
}

/// Takes the first of what is due at `now_s`. From then on they cannot be cancelled.
pub async fn claim(conn: &mut PgConnection, term: i64, now_s: i64, limit: i64) -> sqlx::Result<Vec<Firing>> {
    sqlx::query_as(
        "WITH led AS (
             SELECT FROM timeline WHERE term = $1 FOR SHARE
         ), first AS MATERIALIZED (
             SELECT timestamp, seq FROM due_events WHERE timestamp <= $2 AND EXISTS (SELECT FROM led)
             ORDER BY timestamp, seq LIMIT $3 FOR UPDATE
         ), due AS (
             DELETE FROM due_events d USING first WHERE (d.timestamp, d.seq) = (first.timestamp, first.seq)
             RETURNING d.*
         ), fired AS (
             INSERT INTO firing_events (event_id) SELECT event_id FROM due ORDER BY timestamp, seq
             RETURNING place, event_id
         )
         SELECT f.place, e.id, e.event, e.timestamp, e.data FROM fired f JOIN events e ON e.id = f.event_id
         ORDER BY f.place",
    )
    .bind(term)
    .bind(now_s)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// What was claimed and is not known to be on the bus, the first first.
pub async fn firing(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Firing>> {
    sqlx::query_as(
        "SELECT f.place, e.id, e.event, e.timestamp, e.data FROM firing_events f JOIN events e ON e.id = f.event_id
         ORDER BY f.place LIMIT $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Of these events those that were claimed and are not known to be on the bus, with their places.
pub async fn places(conn: &mut PgConnection, ids: &[EventId]) -> sqlx::Result<Vec<(EventId, i64)>> {
    let rows: Vec<(Uuid, i64)> =
        sqlx::query_as("SELECT event_id, place FROM firing_events WHERE event_id = ANY($1)")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_all(conn)
            .await?;
    Ok(rows.into_iter().map(|(id, place)| (EventId(id), place)).collect())
}

/// Notes what the bus has, which is everything of the stream up to `last_sequence`. False if the term is over.
pub async fn confirm(
    conn: &mut PgConnection,
    term: i64,
    fired: &[Fired],
    last_sequence: i64,
) -> sqlx::Result<bool> {
    let led: Option<bool> = sqlx::query_scalar(
        "WITH led AS (
             UPDATE timeline SET last_sequence = greatest(last_sequence, $5) WHERE term = $1 RETURNING true AS led
         ), done AS (
             SELECT d.* FROM led, unnest($2::bigint[], $3::uuid[], $4::bigint[]) AS d (place, event_id, sequence)
         ), gone AS (
             DELETE FROM firing_events f USING done WHERE f.place = done.place
         ), newest AS (
             SELECT DISTINCT ON (name_hash) * FROM (
                 SELECT sha256(convert_to(e.event, 'UTF8')) AS name_hash, d.sequence, d.event_id
                 FROM done d JOIN events e ON e.id = d.event_id
             ) AS named ORDER BY name_hash, sequence DESC
         ), noted AS (
             INSERT INTO latest_events AS l SELECT name_hash, sequence, event_id FROM newest
             ON CONFLICT (name_hash) DO UPDATE SET sequence = excluded.sequence, event_id = excluded.event_id
             WHERE l.sequence < excluded.sequence
         )
         SELECT led FROM led",
    )
    .bind(term)
    .bind(fired.iter().map(|fired| fired.place).collect::<Vec<_>>())
    .bind(fired.iter().map(|fired| fired.id.0).collect::<Vec<_>>())
    .bind(fired.iter().map(|fired| fired.sequence).collect::<Vec<_>>())
    .bind(last_sequence)
    .fetch_optional(conn)
    .await?;
    Ok(led.is_some())
}

/// The stream begins anew: what was published before comes before its first message. False if the term is over.
pub async fn began_anew(conn: &mut PgConnection, term: i64) -> sqlx::Result<bool> {
    let led: Option<bool> = sqlx::query_scalar(
        "WITH before AS (
             SELECT last_sequence FROM timeline WHERE term = $1 FOR UPDATE
         ), led AS (
             UPDATE timeline SET last_sequence = 0 FROM before WHERE term = $1 RETURNING true AS led
         ), moved AS (
             UPDATE latest_events SET sequence = sequence - before.last_sequence FROM before
         )
         SELECT led FROM led",
    )
    .bind(term)
    .fetch_optional(conn)
    .await?;
    Ok(led.is_some())
}

/// When the next event falls due that waits: Unix seconds.
pub async fn next_due(conn: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("SELECT timestamp FROM due_events ORDER BY timestamp, seq LIMIT 1")
        .fetch_optional(conn)
        .await
}

//! Cancelling: by who inserted it, before it is published.

use super::{Event, event};
use cratemill_protocol::{EventId, UserId};
use sqlx::PgConnection;

#[derive(Debug, Clone)]
pub enum Cancelled {
    Now(Box<Event>),
    /// It was before.
    Already,
    Published,
    /// Somebody else inserted it.
    NotTheirs,
    Unknown,
}

pub async fn cancel(conn: &mut PgConnection, event: EventId, user: UserId) -> sqlx::Result<Cancelled> {
    let taken = sqlx::query_scalar::<_, i32>(
        "WITH gone AS (
             DELETE FROM due_events d USING events e
             WHERE e.id = $1 AND e.user_id = $2 AND (d.timestamp, d.seq) = (e.timestamp, e.seq)
             RETURNING e.id
         )
         UPDATE events e SET cancelled = true FROM gone WHERE e.id = gone.id RETURNING 1",
    )
    .bind(event.0)
    .bind(user.0)
    .fetch_optional(&mut *conn)
    .await?
    .is_some();
    // A statement after it: if another one was faster, this one has waited for it and sees what it did.
    let found: Option<Event> = sqlx::query_as(concat!(
        "SELECT ",
        event!(),
        " FROM events e LEFT JOIN due_events d ON (d.timestamp, d.seq) = (e.timestamp, e.seq) WHERE e.id = $1"
    ))
    .bind(event.0)
    .fetch_optional(conn)
    .await?;
    Ok(match found {
        None => Cancelled::Unknown,
        Some(event) if event.user_id != user => Cancelled::NotTheirs,
        Some(event) if taken => Cancelled::Now(Box::new(event)),
        Some(event) if event.cancelled => Cancelled::Already,
        Some(_) => Cancelled::Published,
    })
}

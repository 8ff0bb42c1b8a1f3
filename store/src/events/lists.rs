//! Events of a collection or of a user, in pages, by timestamp and insertion.

use super::{Event, event};
use sqlx::PgConnection;
use uuid::Uuid;

/// Whose events.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    Collection(Uuid),
    /// Who inserted them.
    User(Uuid),
}

/// Where a page begins: behind the event with this timestamp and place in the order of insertion.
pub type After = (i64, i64);
/// Before all.
pub const BEGINNING: After = (i64::MIN, 0);

pub async fn page(conn: &mut PgConnection, of: Of, after: After, limit: i64) -> sqlx::Result<Vec<Event>> {
    macro_rules! page {
        ($whose:literal) => {
            concat!(
                "SELECT ",
                event!(),
                " FROM (SELECT * FROM events WHERE ",
                $whose,
                " = $1 AND (timestamp, seq) > ($2, $3)
                 ORDER BY timestamp, seq LIMIT $4) e
                 LEFT JOIN due_events d ON (d.timestamp, d.seq) = (e.timestamp, e.seq)
                 ORDER BY e.timestamp, e.seq"
            )
        };
    }
    let (sql, id) = match of {
        Of::Collection(id) => (page!("collection_id"), id),
        Of::User(id) => (page!("user_id"), id),
    };
    sqlx::query_as(sql).bind(id).bind(after.0).bind(after.1).bind(limit).fetch_all(conn).await
}

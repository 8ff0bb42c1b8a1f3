//! Download counts: batches in, sums out.
//!
//! ```text
//! download_counts    artifact, day, client        the finest grain
//! download_sums      crate, axis, day, key        the same downloads by version, target, kind and client
//! download_days      crate, day                   the same downloads by crate
//! download_batches   node, epoch                  which batches of a publisher's run are in these
//! download_installs  client, artifact             requests of those who ask twice
//! ```
//! One transaction writes all of them ([`Writer`]), so that every sum is exact. The first three are partitioned by month.

pub mod dumps;
mod group;
mod installs;
mod marks;
mod months;
mod places;
mod read;
mod tally;
mod write;

pub use group::Group;
pub use months::{compact, to_compact};
pub use read::{Axis, Count, Day, Top, by_axis, by_day, dump, of_version, top, total};
pub use write::{Applied, Error, Writer};

use sqlx::PgConnection;
use time::{Date, Duration, macros::date};

const EPOCH: Date = date!(1970 - 01 - 01);

/// Days since 1970. What is beyond a calendar is its first or last day.
fn date_of(days: i32) -> Date {
    EPOCH.checked_add(Duration::days(i64::from(days))).unwrap_or(if days < 0 { EPOCH } else { Date::MAX })
}

/// Drops the marks of publishers that have been silent for `days`: their messages are long gone from the bus.
pub async fn forget_publishers(conn: &mut PgConnection, days: i32) -> sqlx::Result<u64> {
    let done = sqlx::query("DELETE FROM download_batches WHERE seen_at < now() - make_interval(days => $1)")
        .bind(days)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Drops requests of installs that have found their second half or never will, at most so many: whoever gets that many asks
/// again. What a counter writes just now is left for later.
pub async fn forget_installs(conn: &mut PgConnection, minutes: i32, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "DELETE FROM download_installs WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM download_installs WHERE seen_at < now() - make_interval(mins => $1)
             LIMIT $2 FOR UPDATE SKIP LOCKED))",
    )
    .bind(minutes)
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

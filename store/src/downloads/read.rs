//! Looking at counts: of a crate by day or by what it was, of all crates at once, and everything of a day.

use cratemill_protocol::{CrateId, VersionId};
use futures_util::stream::BoxStream;
use sqlx::PgConnection;
use time::Date;

/// A way in which the downloads of a crate are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    Version,
    Target,
    Kind,
    Client,
}

impl Axis {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Target => "target",
            Self::Kind => "kind",
            Self::Client => "client",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Day {
    pub day: Date,
    pub count: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Count {
    pub key: String,
    pub count: i64,
}

/// Days that had any, the oldest first.
pub async fn by_day(conn: &mut PgConnection, krate: CrateId, from: Date, to: Date) -> sqlx::Result<Vec<Day>> {
    sqlx::query_as(
        "SELECT day, count FROM download_days WHERE crate_id = $1 AND day BETWEEN $2 AND $3 ORDER BY day",
    )
    .bind(krate.0)
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await
}

/// The most downloaded first.
pub async fn by_axis(
    conn: &mut PgConnection,
    krate: CrateId,
    axis: Axis,
    from: Date,
    to: Date,
) -> sqlx::Result<Vec<Count>> {
    sqlx::query_as(
        "SELECT key, sum(count)::bigint AS count FROM download_sums
         WHERE crate_id = $1 AND axis = $2 AND day BETWEEN $3 AND $4 GROUP BY key ORDER BY count DESC, key",
    )
    .bind(krate.0)
    .bind(axis.as_str())
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await
}

/// All downloads of a crate, ever.
pub async fn total(conn: &mut PgConnection, krate: CrateId) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT coalesce(sum(count), 0)::bigint FROM download_days WHERE crate_id = $1")
        .bind(krate.0)
        .fetch_one(conn)
        .await
}

/// All downloads of a version, ever.
pub async fn of_version(conn: &mut PgConnection, version: VersionId) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT coalesce(sum(s.count), 0)::bigint FROM versions v
         JOIN download_sums s ON s.crate_id = v.crate_id AND s.axis = 'version' AND s.key = v.version WHERE v.id = $1",
    )
    .bind(version.0)
    .fetch_one(conn)
    .await
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Top {
    pub name: String,
    pub count: i64,
}

/// The crates with the most downloads of these days.
pub async fn top(conn: &mut PgConnection, from: Date, to: Date, limit: i64) -> sqlx::Result<Vec<Top>> {
    sqlx::query_as(
        "SELECT c.name, d.count FROM (
             SELECT crate_id, sum(count)::bigint AS count FROM download_days WHERE day BETWEEN $1 AND $2
             GROUP BY crate_id ORDER BY count DESC, crate_id LIMIT $3
         ) d JOIN crates c ON c.id = d.crate_id ORDER BY d.count DESC, d.crate_id",
    )
    .bind(from)
    .bind(to)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// All counts of a day as CSV, with a head line.
pub async fn dump(
    conn: &mut PgConnection,
    day: Date,
) -> sqlx::Result<BoxStream<'_, sqlx::Result<bytes::Bytes>>> {
    // COPY takes no parameters; a date holds nothing but digits.
    let copy = format!(
        "COPY (SELECT d.day, c.name AS crate, v.version, a.target, a.kind, a.features, d.client, sum(d.count) AS count
               FROM download_counts d JOIN artifacts a ON a.id = d.artifact_id JOIN versions v ON v.id = a.version_id
               JOIN crates c ON c.id = v.crate_id WHERE d.day = '{day}'
               GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 2, 3, 4, 5, 6, 7) TO STDOUT WITH (FORMAT csv, HEADER)"
    );
    conn.copy_out_raw(&copy).await
}

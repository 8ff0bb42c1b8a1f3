//! Partitions: a month is made when its first download comes, and written anew when nothing of it can come any more.

use super::{EPOCH, date_of, write::Error};
use crate::database::{Alone, try_lock};
use deadpool_postgres::Object;
use sqlx::{Connection, PgConnection};
use std::collections::BTreeSet;
use time::{Date, Duration};

/// The partitioned tables, and the order in which their rows are to lie.
const TABLES: [(&str, &str); 3] = [
    ("download_counts", "artifact_id, day, client"),
    ("download_sums", "crate_id, axis, day, key"),
    ("download_days", "crate_id, day"),
];

/// The months that are known to have partitions.
#[derive(Debug, Default)]
pub(super) struct Months(BTreeSet<Date>);

impl Months {
    /// In transactions of its own: whoever waits for a month waits for nothing else.
    pub(super) async fn make(&mut self, conn: &Object, days: &BTreeSet<i32>) -> Result<(), Error> {
        for day in days {
            let day = date_of(*day);
            let month = day.replace_day(1).unwrap_or(EPOCH);
            if !self.0.contains(&month) {
                conn.execute("SELECT make_download_month($1)", &[&month]).await?;
                self.0.insert(month);
            }
        }
        Ok(())
    }
}

/// The oldest month that ended before `before` and has not been written anew.
pub async fn to_compact(conn: &mut PgConnection, before: Date) -> sqlx::Result<Option<Date>> {
    sqlx::query_scalar(
        "SELECT month FROM download_months
         WHERE compacted_at IS NULL AND month + interval '1 month' <= $1 ORDER BY month LIMIT 1",
    )
    .bind(before)
    .fetch_optional(conn)
    .await
}

/// Writes a month anew: full pages, in the order of its key, with nothing dead in between. It can be read meanwhile;
/// whoever writes to it waits. False if somebody is at it,
/// or readers kept it from being exchanged: the next time, then.
pub async fn compact(conn: &mut PgConnection, month: Date) -> sqlx::Result<bool> {
    for (table, order) in TABLES {
        // A transaction each, so that the exchange at its end keeps nobody waiting for the next copy.
        match rewrite(conn, table, order, month).await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // lock_not_available, or a counter in the way: deadlock_detected
            Err(sqlx::Error::Database(error))
                if error.code().is_some_and(|code| code == "55P03" || code == "40P01") =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    sqlx::query("UPDATE download_months SET compacted_at = now() WHERE month = $1")
        .bind(month)
        .execute(conn)
        .await?;
    Ok(true)
}

/// False if another process is at it. The names hold nothing but what stands here and a month's digits.
async fn rewrite(conn: &mut PgConnection, table: &str, order: &str, month: Date) -> sqlx::Result<bool> {
    let part = format!("{table}_{:04}_{:02}", month.year(), u8::from(month.month()));
    let next = month.checked_add(Duration::days(31)).and_then(|day| day.replace_day(1).ok());
    let next = next.unwrap_or(Date::MAX);
    let statements = format!(
        // It reads and writes a whole month, and takes its time; but nobody is to wait for a lock that we wait for.
        "SET LOCAL statement_timeout = 0;
         SET LOCAL lock_timeout = '2s';
         LOCK TABLE {part} IN SHARE MODE;
         CREATE TABLE {part}_new (LIKE {table} INCLUDING ALL);
         INSERT INTO {part}_new SELECT * FROM {part} ORDER BY {order};
         ANALYZE {part}_new;
         ALTER TABLE {part}_new ADD CONSTRAINT of_month CHECK (day >= '{month}' AND day < '{next}');
         ALTER TABLE {table} DETACH PARTITION {part};
         DROP TABLE {part};
         ALTER TABLE {part}_new RENAME TO {part};
         ALTER INDEX {part}_new_pkey RENAME TO {part}_pkey;
         ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ('{month}') TO ('{next}');
         ALTER TABLE {part} DROP CONSTRAINT of_month"
    );
    let mut tx = conn.begin().await?;
    if !try_lock(&mut tx, Alone::Compaction).await? {
        return Ok(false);
    }
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(true)
}

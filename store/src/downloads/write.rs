//! One transaction for many batches: the marks of what is counted, the counts, and every sum of them.

use super::{
    date_of,
    group::Group,
    installs, marks,
    months::Months,
    places::Places,
    tally::{Rows, SumKey},
};
use crate::bulk::{Connection, Held, Pool, PoolError};
use deadpool_postgres::Transaction;
use futures_util::future::try_join4;
use std::time::Duration;
use time::Date;
use tokio_postgres::error::SqlState;

/// The server gives a statement thirty seconds: an answer that has not come by then got lost with the connection.
const LONGEST: Duration = Duration::from_secs(35);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection to Postgres: {0}")]
    Pool(#[from] PoolError),
    #[error("Postgres: {}", said(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer from Postgres in {0:?}")]
    Silent(Duration),
    #[error("what is counted of a publisher was forgotten in between")]
    MarkGone,
}

/// The driver's own text is just "db error".
fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)
}

impl Error {
    /// Whether the same batches would fail again: the data is at fault, not the connection or another transaction.
    pub fn is_permanent(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        // Data exceptions and violated constraints. A row without a partition is none: it is made the next time.
        error.code().is_some_and(|code| {
            *code != SqlState::CHECK_VIOLATION
                && (code.code().starts_with("22") || code.code().starts_with("23"))
        })
    }
}

/// What a group came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    pub counted: u64,
    /// Of artifacts that do not exist, which count nowhere.
    pub homeless: u64,
}

/// Writes groups, and remembers of artifacts and months what never changes.
#[derive(Debug)]
pub struct Writer {
    pool: Pool,
    known: Known,
}

#[derive(Debug, Default)]
struct Known {
    places: Places,
    months: Months,
}

impl Writer {
    pub fn new(pool: Pool) -> Self {
        Self { pool, known: Known::default() }
    }

    /// Counts what is not counted yet; the counts and the marks commit together. After an error nothing was counted, or the
    /// commit's answer was lost: the same batches again are right in both cases, and also when this is dropped half-way.
    pub async fn apply(&mut self, group: &mut Group) -> Result<Applied, Error> {
        let applied = tokio::time::timeout(LONGEST, self.try_to_apply(group)).await;
        applied.unwrap_or(Err(Error::Silent(LONGEST)))
    }

    async fn try_to_apply(&mut self, group: &mut Group) -> Result<Applied, Error> {
        let mut conn = Held::of(self.pool.get().await?);
        // Whatever goes wrong, what was known is not what to build on.
        let mut known = std::mem::take(&mut self.known);
        let applied = known.apply(&mut conn, group).await?;
        self.known = known;
        conn.give_back();
        Ok(applied)
    }
}

impl Known {
    async fn apply(&mut self, conn: &mut Connection, group: &mut Group) -> Result<Applied, Error> {
        self.months.make(conn, &group.days()).await?;
        let tx = conn.transaction().await?;
        let mut marks = marks::lock(&tx, &group.publishers()).await?;
        let (mut tally, requests) = group.uncounted(&mut marks);
        installs::pair(&tx, &requests, &mut tally).await?;
        self.places.look_up(&tx, tally.artifacts()).await?;
        let rows = tally.rows(|artifact| self.places.get(artifact));
        let (counts, sums, days) = (write_counts(&tx, &rows), write_sums(&tx, &rows), write_days(&tx, &rows));
        // In this order on the wire, without waiting for each other's answers.
        try_join4(counts, sums, days, marks::write(&tx, &marks)).await?;
        tx.commit().await?;
        Ok(Applied { counted: rows.counted, homeless: rows.homeless })
    }
}

async fn write_counts(tx: &Transaction<'_>, rows: &Rows<'_>) -> Result<(), Error> {
    if rows.counts.is_empty() {
        return Ok(());
    }
    let upsert = tx
        .prepare_cached(
            "INSERT INTO download_counts AS d (artifact_id, day, client, count)
             SELECT * FROM unnest($1::bigint[], $2::date[], $3::text[], $4::bigint[])
             ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = d.count + excluded.count",
        )
        .await?;
    let artifacts: Vec<i64> = rows.counts.iter().map(|(key, _)| key.artifact).collect();
    let days: Vec<Date> = rows.counts.iter().map(|(key, _)| date_of(key.day)).collect();
    let clients: Vec<&str> = rows.counts.iter().map(|(key, _)| key.client.as_str()).collect();
    let counts: Vec<i64> = rows.counts.iter().map(|(_, count)| *count).collect();
    tx.execute(&upsert, &[&artifacts, &days, &clients, &counts]).await?;
    Ok(())
}

async fn write_sums(tx: &Transaction<'_>, rows: &Rows<'_>) -> Result<(), Error> {
    if rows.sums.is_empty() {
        return Ok(());
    }
    let upsert = tx
        .prepare_cached(
            "INSERT INTO download_sums AS d (crate_id, axis, day, key, count)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::date[], $4::text[], $5::bigint[])
             ON CONFLICT (crate_id, axis, day, key) DO UPDATE SET count = d.count + excluded.count",
        )
        .await?;
    let column = |of: fn(&SumKey<'_>) -> i64| rows.sums.iter().map(|(key, _)| of(key)).collect::<Vec<_>>();
    let crates = column(|key| key.0);
    let axes: Vec<&str> = rows.sums.iter().map(|(key, _)| key.1).collect();
    let days: Vec<Date> = rows.sums.iter().map(|(key, _)| date_of(key.2)).collect();
    let keys: Vec<&str> = rows.sums.iter().map(|(key, _)| key.3).collect();
    let counts: Vec<i64> = rows.sums.iter().map(|(_, count)| *count).collect();
    tx.execute(&upsert, &[&crates, &axes, &days, &keys, &counts]).await?;
    Ok(())
}

async fn write_days(tx: &Transaction<'_>, rows: &Rows<'_>) -> Result<(), Error> {
    if rows.days.is_empty() {
        return Ok(());
    }
    let upsert = tx
        .prepare_cached(
            "INSERT INTO download_days AS d (crate_id, day, count)
             SELECT * FROM unnest($1::bigint[], $2::date[], $3::bigint[])
             ON CONFLICT (crate_id, day) DO UPDATE SET count = d.count + excluded.count",
        )
        .await?;
    let crates: Vec<i64> = rows.days.iter().map(|(key, _)| key.0).collect();
    let days: Vec<Date> = rows.days.iter().map(|(key, _)| date_of(key.1)).collect();
    let counts: Vec<i64> = rows.days.iter().map(|(_, count)| *count).collect();
    tx.execute(&upsert, &[&crates, &days, &counts]).await?;
    Ok(())
}

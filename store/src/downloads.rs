//! Download counts: batches in, sums out.

use cratemill_protocol::{
    CrateName,
    bus::{DownloadBatch, DownloadCount},
};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use time::{Date, Duration, macros::date};

/// Applies batches that are not applied yet; the counts and the mark of what is counted commit together.
///
/// The publisher's own numbers decide, not the bus's: (node, epoch) names a run of a publisher, and its batches are
/// numbered from 1. They may come in any order and any number of times. Returns how many downloads were counted.
pub async fn apply(conn: &mut PgConnection, batches: &[DownloadBatch]) -> sqlx::Result<u64> {
    let mut marks = lock_marks(conn, batches).await?;
    let mut sums: BTreeMap<(i64, i32, &'static str), i64> = BTreeMap::new();
    for batch in batches {
        let mark = marks.entry((batch.node.clone(), batch.epoch)).or_default();
        if !mark.take(batch.batch) {
            continue;
        }
        for count in &batch.counts {
            let sum = sums.entry(key(count)).or_default();
            *sum = sum.saturating_add(i64::try_from(count.count).unwrap_or(i64::MAX));
        }
    }
    write_sums(conn, &sums).await?;
    write_marks(conn, &marks).await?;
    Ok(sums.values().fold(0, |all: u64, sum| all.saturating_add(sum.unsigned_abs())))
}

/// A gap that more batches than this have passed is one that the publisher left: the bus has far fewer under way.
const MAX_AHEAD: usize = 8_192;

/// Which batches of a publisher's run are counted.
#[derive(Debug, Default)]
struct Mark {
    /// All up to this one.
    upto: i64,
    /// And these beyond it.
    ahead: BTreeSet<i64>,
}

impl Mark {
    /// Notes a batch as counted; false if it was already.
    fn take(&mut self, number: u64) -> bool {
        // As the database can hold it; no publisher counts that far.
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        if number <= self.upto || !self.ahead.insert(number) {
            return false;
        }
        if self.ahead.len() > MAX_AHEAD {
            self.upto = self.ahead.first().map_or(self.upto, |first| first - 1);
        }
        while self.upto.checked_add(1).is_some_and(|next| self.ahead.remove(&next)) {
            self.upto += 1;
        }
        true
    }
}

fn key(count: &DownloadCount) -> (i64, i32, &'static str) {
    (count.artifact.0, count.day, count.client.as_str())
}

/// What is counted of each publisher named here; the rows stay locked, in one order.
async fn lock_marks(
    conn: &mut PgConnection,
    batches: &[DownloadBatch],
) -> sqlx::Result<BTreeMap<(String, i64), Mark>> {
    let (nodes, epochs) = publishers(batches.iter().map(|batch| (batch.node.as_str(), batch.epoch)));
    sqlx::query(
        "INSERT INTO download_batches (node, epoch, batch)
         SELECT DISTINCT node, epoch, 0 FROM unnest($1::text[], $2::bigint[]) AS p (node, epoch) ORDER BY 1, 2
         ON CONFLICT DO NOTHING",
    )
    .bind(&nodes)
    .bind(&epochs)
    .execute(&mut *conn)
    .await?;
    let rows: Vec<(String, i64, i64, Vec<i64>)> = sqlx::query_as(
        "SELECT node, epoch, batch, ahead FROM download_batches
         WHERE (node, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) ORDER BY node, epoch FOR UPDATE",
    )
    .bind(&nodes)
    .bind(&epochs)
    .fetch_all(conn)
    .await?;
    let marks = rows.into_iter().map(|(node, epoch, upto, ahead)| {
        let mark = Mark { upto, ahead: ahead.into_iter().collect() };
        ((node, epoch), mark)
    });
    Ok(marks.collect())
}

fn publishers<'a>(pairs: impl Iterator<Item = (&'a str, i64)>) -> (Vec<&'a str>, Vec<i64>) {
    pairs.collect::<BTreeSet<_>>().into_iter().unzip()
}

/// Upserts in key order, so that two counters never wait for each other in a circle. Artifacts that do not exist
/// count nowhere.
async fn write_sums(
    conn: &mut PgConnection,
    sums: &BTreeMap<(i64, i32, &'static str), i64>,
) -> sqlx::Result<()> {
    let artifacts: Vec<i64> = sums.keys().map(|key| key.0).collect();
    let days: Vec<Date> = sums.keys().map(|key| day(key.1)).collect();
    let clients: Vec<&str> = sums.keys().map(|key| key.2).collect();
    let counts: Vec<i64> = sums.values().copied().collect();
    sqlx::query(
        "INSERT INTO downloads_daily (artifact_id, day, client, count)
         SELECT n.artifact, n.day, n.client, n.count
         FROM unnest($1::bigint[], $2::date[], $3::text[], $4::bigint[]) AS n (artifact, day, client, count)
         WHERE EXISTS (SELECT FROM artifacts a WHERE a.id = n.artifact) ORDER BY 1, 2, 3
         ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = downloads_daily.count + excluded.count",
    )
    .bind(artifacts)
    .bind(days)
    .bind(clients)
    .bind(counts)
    .execute(conn)
    .await?;
    Ok(())
}

/// A row each: Postgres has no arrays of arrays of different lengths, and a batch comes from few publishers.
async fn write_marks(conn: &mut PgConnection, marks: &BTreeMap<(String, i64), Mark>) -> sqlx::Result<()> {
    for ((node, epoch), mark) in marks {
        sqlx::query(
            "UPDATE download_batches SET batch = $3, ahead = $4, seen_at = now() WHERE node = $1 AND epoch = $2",
        )
        .bind(node)
        .bind(epoch)
        .bind(mark.upto)
        .bind(mark.ahead.iter().copied().collect::<Vec<_>>())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

const EPOCH: Date = date!(1970 - 01 - 01);

/// Days beyond what a calendar holds count on its first or last day.
fn day(days: i32) -> Date {
    EPOCH.checked_add(Duration::days(i64::from(days))).unwrap_or(if days < 0 { EPOCH } else { Date::MAX })
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Daily {
    pub day: Date,
    pub version: String,
    pub target: String,
    pub kind: String,
    pub client: String,
    pub count: i64,
}

/// The counts of a crate, the newest day first.
pub async fn of_crate(
    conn: &mut PgConnection,
    krate: &CrateName,
    from: Date,
    to: Date,
) -> sqlx::Result<Vec<Daily>> {
    sqlx::query_as(
        "SELECT d.day, v.version, a.target, a.kind, d.client, sum(d.count)::bigint AS count
         FROM downloads_daily d JOIN artifacts a ON a.id = d.artifact_id
         JOIN versions v ON v.id = a.version_id JOIN crates c ON c.id = v.crate_id
         WHERE c.canonical = $1 AND d.day BETWEEN $2 AND $3
         GROUP BY d.day, v.version, a.target, a.kind, d.client ORDER BY d.day DESC, v.version, a.target, a.kind, d.client",
    )
    .bind(krate.canonical())
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await
}

/// All downloads of a crate, ever.
pub async fn total(conn: &mut PgConnection, krate: &CrateName) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT coalesce(sum(d.count), 0)::bigint FROM downloads_daily d JOIN artifacts a ON a.id = d.artifact_id
         JOIN versions v ON v.id = a.version_id JOIN crates c ON c.id = v.crate_id WHERE c.canonical = $1",
    )
    .bind(krate.canonical())
    .fetch_one(conn)
    .await
}

/// Drops the marks of publishers that have been silent for `days`: their messages are long gone from the bus.
pub async fn forget_publishers(conn: &mut PgConnection, days: i32) -> sqlx::Result<u64> {
    let done = sqlx::query("DELETE FROM download_batches WHERE seen_at < now() - make_interval(days => $1)")
        .bind(days)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_taken_once_in_any_order() {
        let mut mark = Mark::default();
        for (number, expected) in
            [(0, false), (2, true), (3, true), (2, false), (1, true), (3, false), (5, true)]
        {
            assert_eq!(mark.take(number), expected, "{number}");
        }
        assert_eq!((mark.upto, mark.ahead.len()), (3, 1));
    }

    #[test]
    fn a_gap_for_ever_does_not_grow_for_ever() {
        let mut mark = Mark::default();
        let last = MAX_AHEAD as u64 + 2;
        assert!((2..=last).all(|number| mark.take(number)));
        assert_eq!((mark.upto.unsigned_abs(), mark.ahead.len()), (last, 0));
        assert!(!mark.take(1));
    }
}

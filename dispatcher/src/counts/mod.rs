//! What happens to counts of downloads after their day: each day becomes a CSV file in the object store, and each month is
//! written anew when nothing of it can come any more.
//!
//! Any dispatcher does it: a day is claimed in the database for as long as a dump takes, a month is locked.

pub mod dump;

use cratemill_protocol::download::JOURNAL_DAYS;
use cratemill_service::outage::{Outage, pause};
use cratemill_store::{
    PgPool,
    downloads::{self, dumps},
    objects::Objects,
    patience::in_time,
};
use std::time::Duration;
use time::{Date, OffsetDateTime};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_mins(10);
/// A little after midnight most of the day before is counted.
const AFTER_MIDNIGHT: time::Duration = time::Duration::minutes(10);
/// Counts come as late as journals keep them, and a clock may be a day off: until then a day's file is made anew whenever
/// its counts have changed.
const LATE: time::Duration = time::Duration::days(JOURNAL_DAYS as i64 + 2);
/// Only asked of what has just failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A dispatcher that has just started looks back further, at days that no other one came to.
const LOOK_BACK: time::Duration = time::Duration::days(400);

pub async fn run(pool: PgPool, objects: Objects, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("dumps of download counts");
    let mut wait = Duration::from_secs(10);
    // When to look back; never again once that went well.
    let mut look_back = Some(Instant::now());
    while pause(wait, &shutdown).await {
        let far = look_back.is_some_and(|at| at <= Instant::now());
        let since = if far { LOOK_BACK } else { LATE };
        let done = tokio::select! {
            done = round(&pool, &objects, OffsetDateTime::now_utc(), since) => done,
            // Half a dump is none, and half a month is rolled back.
            () = shutdown.cancelled() => return Ok(()),
        };
        if far {
            // A day of long ago that cannot be stored is not tried as often as those that are due now.
            look_back = done.is_err().then(|| Instant::now() + INTERVAL);
        }
        wait = match done {
            Ok(()) => {
                outage.over();
                INTERVAL
            }
            Err(error) => outage.failed(error),
        };
    }
    Ok(())
}

/// Everything that is due at `now`; of days no older than `since`. What fails keeps nothing else from being done: the first
/// error is said at the end.
pub async fn round(
    pool: &PgPool,
    objects: &Objects,
    now: OffsetDateTime,
    since: time::Duration,
) -> anyhow::Result<()> {
    let before = (now - AFTER_MIDNIGHT).date();
    let mut done = Ok(());
    for (from, to) in windows(before, since) {
        done = done.and(dump_days(pool, objects, from, to).await);
        if done.is_err() && !answers(objects).await {
            break;
        }
    }
    done.and(compact_months(pool, before).await)
}

/// From a day until before another one, the newest first. The first is that in which counts still come; those before it
/// are a month at most, which is a partition.
fn windows(before: Date, since: time::Duration) -> Vec<(Date, Date)> {
    let oldest = before.checked_sub(since).unwrap_or(Date::MIN);
    let late = before.checked_sub(LATE).unwrap_or(Date::MIN);
    let mut windows = vec![(late.max(oldest), before)];
    let mut to = late;
    while to > oldest {
        let month = to.previous_day().and_then(|day| day.replace_day(1).ok()).unwrap_or(oldest);
        let from = month.max(oldest);
        windows.push((from, to));
        to = from;
    }
    windows
}

async fn dump_days(pool: &PgPool, objects: &Objects, from: Date, to: Date) -> anyhow::Result<()> {
    let due = in_time(async { dumps::due(&mut *pool.acquire().await?, from, to).await }).await?;
    let mut done = Ok(());
    for day in due {
        if !in_time(async { dumps::claim(&mut *pool.acquire().await?, day).await }).await? {
            continue;
        }
        if let Err(error) = dump::make(pool, objects, day).await {
            // At once: nobody else comes to it for a quarter of an hour.
            in_time(async { dumps::release(&mut *pool.acquire().await?, day).await }).await?;
            done = done.and(Err(error.context(format!("the counts of {day}"))));
            if !answers(objects).await {
                break;
            }
        }
    }
    done
}

/// Without an object store no day can be stored.
async fn answers(objects: &Objects) -> bool {
    timeout(ANSWER_TIMEOUT, objects.check()).await.is_ok_and(|answer| answer.is_ok())
}

async fn compact_months(pool: &PgPool, before: Date) -> anyhow::Result<()> {
    let over = before.checked_sub(LATE).unwrap_or(Date::MIN);
    while let Some(month) =
        in_time(async { downloads::to_compact(&mut *pool.acquire().await?, over).await }).await?
    {
        if !downloads::compact(&mut *pool.acquire().await?, month).await? {
            tracing::debug!(%month, "counts of this month are in use: they are compacted another time");
            break;
        }
        tracing::info!(%month, "counts of this month are compacted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn looking_back_is_a_month_at_a_time() {
        let before = date!(2026 - 03 - 21);
        assert_eq!(windows(before, LATE), [(date!(2026 - 03 - 12), before)]);
        assert_eq!(
            windows(before, time::Duration::days(60)),
            [
                (date!(2026 - 03 - 12), before),
                (date!(2026 - 03 - 01), date!(2026 - 03 - 12)),
                (date!(2026 - 02 - 01), date!(2026 - 03 - 01)),
                (date!(2026 - 01 - 20), date!(2026 - 02 - 01)),
            ]
        );
        assert_eq!(windows(before, LOOK_BACK).len(), 15);
    }
}

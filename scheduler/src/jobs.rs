//! Jobs with a `run_at`: when it is there they are put into their lines, which tells all dispatchers.

use crate::alarm::until;
use cratemill_service::{clock, outage::Outage};
use cratemill_store::{PgPool, patience::in_time, queue};
use std::{convert::Infallible, time::Duration};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// Jobs that become due at once, and are put into their lines in one statement; the rest follows in the next.
const MAX_PROMOTED: i64 = 1_000;
/// Without any wake-up: what a lost notification costs at most.
const POLL: Duration = Duration::from_secs(2);
/// The clock that says what is due is the database's: by ours it may be a moment early.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

pub(crate) async fn run(pool: &PgPool, wake: &Notify) -> Infallible {
    let mut outage = Outage::new("jobs that are due");
    loop {
        let wait = match in_time(promote(pool)).await {
            Ok(wait) => {
                outage.over();
                wait
            }
            Err(error) => {
                sleep(outage.failed(error)).await;
                continue;
            }
        };
        // Where somebody has put jobs, one may fall due earlier.
        let _ = timeout(wait.max(SHORTEST_WAIT), wake.notified()).await;
    }
}

/// Returns how long nothing falls due.
async fn promote(pool: &PgPool) -> cratemill_store::Result<Duration> {
    let mut conn = pool.acquire().await?;
    while queue::promote(&mut conn, MAX_PROMOTED).await? > 0 {}
    let next = queue::next_due(&mut conn).await?;
    let due_ms = next.map(|next| i64::try_from(next.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX));
    Ok(until(due_ms, clock::now_ms(), POLL))
}

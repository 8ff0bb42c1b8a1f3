//! One process schedules. It holds a lock in a transaction of its own: when it dies, or its machine, the server ends that
//! transaction, and the next in line has the lock at once.
//!
//! Who is cut off from the database may go on for a moment without knowing that it lost the lock. What it writes then is
//! fenced, by a term in the database and by the stream's last sequence on the bus (see [`crate::events`]).

use crate::{Scheduler, events, jobs, metrics};
use anyhow::Context as _;
use cratemill_service::outage::{Outage, pause};
use cratemill_store::{
    Connection as _, PgConnection,
    database::{self, Alone},
};
use std::{convert::Infallible, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How soon another process takes over. Waiting in the lock would be sooner, and would keep the server from cleaning up.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// A transaction that says nothing for half a minute is ended by the server.
const PING_EVERY: Duration = Duration::from_secs(8);
/// Any statement of the connection that holds the lock.
const ANSWER: Duration = Duration::from_secs(5);

pub(crate) async fn run(scheduler: &Scheduler, shutdown: &CancellationToken) {
    let mut outage = Outage::new("the scheduler");
    while !shutdown.is_cancelled() {
        let failed = async {
            let Err(error) = lead(scheduler, &mut outage).await;
            outage.failed(error)
        };
        let wait = tokio::select! {
            wait = failed => wait,
            () = shutdown.cancelled() => return,
        };
        pause(wait, shutdown).await;
    }
}

/// Waits for the lock, and leads until something fails.
async fn lead(scheduler: &Scheduler, outage: &mut Outage) -> anyhow::Result<Infallible> {
    let connect = database::dedicated(&scheduler.pool, ANSWER);
    let mut conn = timeout(ANSWER, connect).await.context("no connection in time")??;
    let mut tx = loop {
        let mut tx = timeout(ANSWER, conn.begin()).await.context("no answer")??;
        if timeout(ANSWER, database::try_lock(&mut tx, Alone::Schedule)).await.context("no answer")?? {
            break tx;
        }
        timeout(ANSWER, tx.rollback()).await.context("no answer")??;
        outage.over();
        sleep(TRY_EVERY).await;
    };
    outage.over();
    tracing::info!("scheduling what is due");
    let _leads = Leads::new();
    let duties = async {
        match &scheduler.jobs {
            Some(wake) => tokio::join!(events::run(scheduler), jobs::run(&scheduler.pool, wake)).0,
            None => events::run(scheduler).await,
        }
    };
    tokio::select! {
        error = hold(&mut tx) => Err(error),
        never = duties => match never {},
    }
}

/// Until the lock may be lost.
async fn hold(conn: &mut PgConnection) -> anyhow::Error {
    loop {
        sleep(PING_EVERY).await;
        let lost = match timeout(ANSWER, database::ping(conn)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => anyhow::Error::from(error),
            Err(_) => anyhow::anyhow!("no answer"),
        };
        return lost.context("the lock may be lost");
    }
}

/// Says so for as long as it is there.
struct Leads;

impl Leads {
    fn new() -> Self {
        metrics::leads(true);
        Self
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        metrics::leads(false);
    }
}

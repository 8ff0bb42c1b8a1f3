//! One statement every few seconds says that this node lives, and with it every session on it; its answer tells whether
//! somebody changed one of them. Only then are they looked at, all in one query: an idle builder costs the database
//! nothing, and yet a message about it may be lost.

use super::{Sockets, database};
use anyhow::Result;
use cratemill_store::{
    PgConnection,
    nodes::{self, Session},
};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// Several times within the time after which dispatchers pass a node over.
const MARK_PERIOD: Duration = Duration::from_secs(5);

/// What a process of the same name left behind is over; only before the first builder is let in.
pub(super) async fn begin(sockets: &Sockets) -> Result<()> {
    if !sockets.open.load(Ordering::Acquire) {
        let mut tx = sockets.pool.begin().await?;
        nodes::forget_earlier(&mut tx, &sockets.run).await?;
        nodes::register(&mut tx, &sockets.run).await?;
        tx.commit().await?;
        sockets.open.store(true, Ordering::Release);
    }
    Ok(())
}

/// Never returns.
pub(super) async fn run(sockets: &Sockets) {
    let mut ticks = interval(MARK_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A node that the bus does not reach hears of no job: its builders must not look as if they waited.
        if sockets.bus.check().is_err() {
            continue;
        }
        if let Err(error) = mark(sockets).await {
            tracing::warn!(error = format!("{error:#}"), "cannot say that this node lives");
        }
    }
}

async fn mark(sockets: &Sockets) -> Result<()> {
    let mut conn = sockets.pool.acquire().await?;
    let changes = match nodes::mark(&mut conn, &sockets.run).await? {
        Some(changes) => changes,
        None => revive(sockets, &mut conn).await?,
    };
    if !sockets.connections().begin_telling(changes) {
        return Ok(());
    }
    let told = tell(sockets, &mut conn).await;
    if told.is_err() {
        sockets.connections().forget_told();
    }
    told
}

/// The node was silent for so long that it counted as dead: its sessions are gone, and it starts over.
async fn revive(sockets: &Sockets, conn: &mut PgConnection) -> Result<i64> {
    tracing::warn!("this node was taken for dead: its builders log in again");
    nodes::register(conn, &sockets.run).await?;
    sockets.connections().forget_told();
    Ok(0)
}

/// A connection without a session would wait for jobs that no dispatcher can give it: it is to log in again. One that
/// missed what became of its builder hears of it now. And a session whose connection ended while the database was away
/// would live as long as this node: it ends now.
async fn tell(sockets: &Sockets, conn: &mut PgConnection) -> Result<()> {
    // Looked at first: the session of a connection that comes later need not be among those that are read.
    let connected = sockets.connections().all();
    let sessions = nodes::sessions(conn, &sockets.run).await?;
    let left = sockets.connections().repair(&connected, sessions);
    for Session { connection, builder, name, .. } in left {
        database::close(&sockets.pool, builder, &name, &connection).await?;
    }
    Ok(())
}

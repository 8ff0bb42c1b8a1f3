//! What wakes the loops of this process: notifications of the database, and each other. All of them poll as well.

use crate::outage::{Outage, pause};
use cratemill_store::{
    PgPool,
    database::{Channel, listen},
};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub struct Wakes {
    /// A job can be assigned, or a builder waits.
    pub jobs: Notify,
    pub outbox: Notify,
    /// An attempt ended: its log can be archived.
    pub ended: Notify,
}

impl Wakes {
    fn all(&self) {
        self.jobs.notify_one();
        self.outbox.notify_one();
        self.ended.notify_one();
    }
}

/// Passes notifications on; one connection serves all loops.
pub async fn run(pool: PgPool, wakes: Arc<Wakes>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("listening for notifications");
    while !shutdown.is_cancelled() {
        let error = tokio::select! {
            error = forward(&pool, &wakes, &mut outage) => error,
            () = shutdown.cancelled() => return Ok(()),
        };
        pause(outage.failed(error), &shutdown).await;
    }
    Ok(())
}

async fn forward(pool: &PgPool, wakes: &Wakes, outage: &mut Outage) -> cratemill_store::Error {
    let mut listener = match listen(pool, &[Channel::Jobs, Channel::Outbox]).await {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    outage.over();
    loop {
        // Something may have been said while nobody listened.
        wakes.all();
        loop {
            match listener.try_recv().await {
                Ok(Some(notification)) if notification.channel() == Channel::Outbox.name() => {
                    wakes.outbox.notify_one();
                }
                Ok(Some(_)) => wakes.jobs.notify_one(),
                // The connection was lost, and is made anew by the next call.
                Ok(None) => break,
                Err(error) => return error,
            }
        }
    }
}

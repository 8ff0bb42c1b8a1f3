//! What wakes the loops of this process: notifications of the database, hints of other services, and each other. All of
//! them poll as well.

use crate::unserved::Unserved;
use anyhow::Context as _;
use cratemill_protocol::subjects;
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
};
use cratemill_store::{
    PgPool,
    database::{Channel, listen},
};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub struct Wakes {
    /// The queue has changed.
    pub jobs: Notify,
    /// The same, for whoever knows when jobs fall due.
    pub schedule: Arc<Notify>,
    /// A builder waits.
    pub demand: Notify,
    pub outbox: Notify,
    /// What builders would have to wait for in vain; kept here since who asks for jobs is heard of elsewhere.
    pub unserved: Unserved,
    /// An attempt ended: its log can be archived.
    pub ended: Notify,
}

impl Wakes {
    /// This process has committed that builders ask for jobs of these targets.
    pub fn builders_ask<'a>(&self, targets: impl IntoIterator<Item = &'a str>) {
        self.unserved.offered(targets);
        self.demand.notify_one();
    }

    /// This process has committed that attempts ended whose builders may wait again without asking.
    pub fn attempt_returned(&self) {
        self.unserved.forget();
        self.demand.notify_one();
        self.attempt_ended();
    }

    /// This process has committed that attempts ended.
    pub fn attempt_ended(&self) {
        self.ended.notify_one();
        self.outbox.notify_one();
    }

    /// Jobs are queued, which is an event too.
    fn queue_changed(&self) {
        self.jobs.notify_one();
        self.schedule.notify_one();
        self.outbox.notify_one();
    }

    fn all(&self) {
        self.queue_changed();
        self.ended.notify_one();
    }
}

/// Passes on what others say.
pub async fn run(
    pool: PgPool,
    bus: Bus,
    wakes: Arc<Wakes>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let notified = notifications(pool, &wakes, &shutdown);
    let hinted = async {
        tokio::select! {
            result = hints(&bus, &wakes) => result,
            () = shutdown.cancelled() => Ok(()),
        }
    };
    tokio::try_join!(notified, hinted).map(drop)
}

/// Until the client ends: it subscribes again by itself whenever the bus comes back.
async fn hints(bus: &Bus, wakes: &Wakes) -> anyhow::Result<()> {
    let mut hints = bus.client.subscribe(subjects::OUTBOX).await.context("cannot listen for hints")?;
    while hints.next().await.is_some() {
        wakes.outbox.notify_one();
    }
    anyhow::bail!("the subscription to hints ended")
}

/// One connection serves all loops.
async fn notifications(pool: PgPool, wakes: &Wakes, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("listening for notifications");
    while !shutdown.is_cancelled() {
        let error = tokio::select! {
            error = forward(&pool, wakes, &mut outage) => error,
            () = shutdown.cancelled() => return Ok(()),
        };
        pause(outage.failed(error), shutdown).await;
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
                Ok(Some(_)) => wakes.queue_changed(),
                // The connection was lost, and is made anew by the next call.
                Ok(None) => break,
                Err(error) => return error,
            }
        }
    }
}

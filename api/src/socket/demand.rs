//! What a connection's builder waits for, on its way to the dispatchers: the newest only, and one after the other.
//!
//! A task publishes it and ends; a builder that waits has none.

use super::{Sockets, effects::Input};
use cratemill_protocol::{BuilderId, Target, builder::JobRef, bus::BuildRequest};
use cratemill_service::backoff::Backoff;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// Between two requests of one connection: each is a message, an update and a look for jobs. A builder that frees slots one
/// after the other waits no longer for its next job than it takes to start one.
const PERIOD: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Demand {
    builder: BuilderId,
    targets: Vec<Target>,
    serial: u64,
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    newest: Option<BuildRequest>,
    /// A task takes it from here.
    publishing: bool,
}

impl Demand {
    pub(super) fn new(builder: BuilderId, targets: Vec<Target>) -> Self {
        Self { builder, targets, serial: 0, pending: Arc::default() }
    }

    /// `inputs` are the connection's: once it has ended, its demand is of no interest.
    pub(super) fn publish(
        &mut self,
        sockets: &Arc<Sockets>,
        connection: &str,
        inputs: &mpsc::Sender<Input>,
        slots: u16,
        answered: Vec<JobRef>,
    ) {
        self.serial += 1;
        let request = BuildRequest {
            builder: self.builder,
            connection: connection.to_owned(),
            node: sockets.run.name.clone(),
            targets: self.targets.clone(),
            slots,
            answered,
            serial: self.serial,
        };
        let mut pending = lock(&self.pending);
        pending.newest = Some(request);
        if !std::mem::replace(&mut pending.publishing, true) {
            let (sockets, pending, inputs) = (sockets.clone(), self.pending.clone(), inputs.clone());
            let tasks = sockets.tasks.clone();
            tasks.spawn(async move { publish(&sockets, &pending, &inputs).await });
        }
    }
}

/// Until nothing newer is pending, or the connection has ended.
async fn publish(sockets: &Sockets, pending: &Mutex<Pending>, inputs: &mpsc::Sender<Input>) {
    while let Some(mut request) = next(pending) {
        let started = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while let Err(error) = sockets.groups.request(request.clone()).await {
            tracing::warn!(error = format!("{error:#}"), "cannot publish a builder's demand yet");
            if sockets.shutdown.is_cancelled() || inputs.is_closed() {
                return;
            }
            // A full stream refuses at once.
            tokio::time::sleep(backoff.next_wait()).await;
            request = lock(pending).newest.take().unwrap_or(request);
        }
        // The first after a quiet time goes out at once.
        tokio::time::sleep_until(started + PERIOD).await;
    }
}

fn next(pending: &Mutex<Pending>) -> Option<BuildRequest> {
    let mut pending = lock(pending);
    let next = pending.newest.take();
    pending.publishing = next.is_some();
    next
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

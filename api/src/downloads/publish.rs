//! One batch on its way to the bus, under one message id however often it is tried.

use bytes::Bytes;
use cratemill_protocol::{bus::DownloadBatch, subjects};
use cratemill_service::{
    backoff::Backoff,
    bus::{Bus, Error},
};
use std::{sync::Arc, time::Duration};

/// How long a download waits for its count to be on the bus: a person does not notice it, an acknowledgement is 500 times
/// faster.
const PATIENCE: Duration = Duration::from_millis(250);
/// One try when nobody waits, so that a change of the bus's leader is within it.
const LONG_PATIENCE: Duration = Duration::from_secs(10);
/// Between tries while the bus is away.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(super) struct Message {
    node: Arc<str>,
    epoch: i64,
    number: u64,
    pub(super) payload: Bytes,
    pub(super) downloads: u64,
}

impl Message {
    pub(super) fn of(batch: &DownloadBatch, payload: Bytes) -> Self {
        let (node, epoch, number) = (batch.node.as_str().into(), batch.epoch, batch.batch);
        Self { node, epoch, number, payload, downloads: batch.downloads() }
    }
}

/// While a download waits. The bus may have it all the same after an error.
pub(super) async fn at_once(bus: &Bus, message: &Message) -> Result<(), String> {
    // A client without a connection buffers what it cannot send: there is no use in trying.
    bus.check()?;
    store(bus, message, PATIENCE).await.map_err(|error| error.to_string())
}

pub(super) async fn until_stored(bus: &Bus, message: &Message) {
    let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
    while bus.check().is_err() || store(bus, message, LONG_PATIENCE).await.is_err() {
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn store(bus: &Bus, message: &Message, patience: Duration) -> Result<(), Error> {
    let Message { node, epoch, number, payload, .. } = message;
    let (subject, id) = (subjects::download(node), format!("d-{node}-{epoch}-{number}"));
    bus.store(&subject, &id, payload.clone(), patience).await.map(drop)
}

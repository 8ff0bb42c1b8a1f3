//! Answers requests to look at one crate now. Requests for the same crate share one look.

use super::{
    Error,
    client::Registry,
    refresh::{RefreshError, refresh},
};
use async_nats::Message;
use cratemill_protocol::{
    CrateName,
    bus::{self, RefreshReply, RefreshRequest},
    subjects,
};
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
};
use cratemill_store::PgPool;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// Requests answered at once; the others wait in the subscription's buffer, and their senders have deadlines.
const MAX_REQUESTS: usize = 64;

type Refresh = Shared<BoxFuture<'static, RefreshReply>>;

/// Looks that are under way, by canonical name.
#[derive(Debug, Clone)]
pub struct Refreshes {
    pool: PgPool,
    registry: Arc<Registry>,
    under_way: Arc<Mutex<HashMap<String, Refresh>>>,
}

impl Refreshes {
    pub fn new(pool: PgPool, registry: Arc<Registry>) -> Self {
        Self { pool, registry, under_way: Arc::default() }
    }

    /// Looks at a crate, or waits for the look that is under way.
    pub async fn refresh(&self, krate: &CrateName) -> RefreshReply {
        let key = krate.canonical();
        let look = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.entry(key.clone()).or_insert_with(|| self.look(krate.clone(), key)).clone()
        };
        look.await
    }

    fn look(&self, krate: CrateName, key: String) -> Refresh {
        let this = self.clone();
        async move {
            let reply = reply(&krate, refresh(&this.pool, &this.registry, &krate).await);
            this.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            reply
        }
        .boxed()
        .shared()
    }
}

fn reply(krate: &CrateName, result: Result<(), RefreshError>) -> RefreshReply {
    match result {
        Ok(()) => RefreshReply::Fresh,
        Err(RefreshError::Registry(Error::NotFound)) => RefreshReply::NotFound,
        Err(error) => {
            tracing::warn!(%krate, %error, "cannot look at a crate on request");
            RefreshReply::Unavailable { message: error.to_string() }
        }
    }
}

pub async fn run(bus: Bus, refreshes: Refreshes, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("answering registry requests");
    while !shutdown.is_cancelled() {
        let group = subjects::DISPATCHERS_GROUP.to_owned();
        match bus.client.queue_subscribe(subjects::REGISTRY_REFRESH, group).await {
            Ok(requests) => {
                outage.over();
                let answer = |request| answer(&bus, &refreshes, request);
                // The client subscribes again by itself when the bus is back; the end of this stream is the client's.
                requests.take_until(shutdown.cancelled()).for_each_concurrent(MAX_REQUESTS, answer).await;
            }
            Err(error) => {
                pause(outage.failed(error), &shutdown).await;
            }
        }
    }
    Ok(())
}

async fn answer(bus: &Bus, refreshes: &Refreshes, request: Message) {
    let Some(inbox) = request.reply else { return };
    let reply = match bus::decode::<RefreshRequest>(&request.payload) {
        Ok(request) => refreshes.refresh(&request.krate).await,
        Err(error) => {
            tracing::error!(%error, "a registry request cannot be read");
            RefreshReply::Unavailable { message: "the request cannot be read".into() }
        }
    };
    if let Err(error) = bus.client.publish(inbox, bus::encode(&reply).into()).await {
        tracing::warn!(%error, "cannot answer a registry request: its sender asks again");
    }
}

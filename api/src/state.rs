//! What every handler of the node shares. Nothing in it outlives a request except connections, what
//! is remembered of artifacts, and counts on their way.

use crate::{
    auth::AdminToken, config::Config, download::Artifact, downloads::Counts, hot::Hot, observe::Durations,
    source::Sources, upload::Underway,
};
use cratemill_protocol::token::Signer;
use cratemill_service::bus::Bus;
use cratemill_store::{PgPool, database, objects::Objects};
use std::{ops::Deref, sync::Arc};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Clones share everything: a request gets one, and must not pay for each of the parts.
#[derive(Debug, Clone)]
pub struct App(Arc<Parts>);

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

#[derive(Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub pool: PgPool,
    /// Jobs are queued here: [`database::for_queue`].
    pub(crate) queue: PgPool,
    pub bus: Bus,
    pub objects: Objects,
    pub signer: Signer,
    pub(crate) admin: AdminToken,
    pub counts: Counts,
    /// Artifacts that are downloaded often.
    pub(crate) hot: Hot<Arc<Artifact>>,
    pub sources: Sources,
    pub uploads: Underway,
    /// How long requests take.
    pub(crate) durations: Durations,
    /// For what reads much of a table: one request at a time.
    pub(crate) surveys: Arc<Semaphore>,
    /// Work that goes on when its client is gone: cleaning up after it.
    pub tasks: TaskTracker,
}

impl App {
    pub fn new(config: Config, pool: PgPool, bus: Bus) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts {
            objects: Objects::new(&config.objects),
            signer: Signer::new(config.token_secret.as_bytes()),
            admin: AdminToken::new(&config.admin_token),
            counts: Counts::new(&config.node),
            hot: Hot::default(),
            sources: Sources::new(&config)?,
            uploads: Underway::default(),
            durations: Durations::default(),
            surveys: Arc::new(Semaphore::new(1)),
            tasks: TaskTracker::new(),
            config: Arc::new(config),
            queue: database::for_queue(&pool),
            pool,
            bus,
        })))
    }

    /// Without this, nothing of the catalogue is remembered.
    pub async fn watch_catalogue(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        self.hot.watch(&self.pool, &shutdown).await;
        Ok(())
    }
}

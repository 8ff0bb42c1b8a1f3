//! What every handler of the node shares. Nothing in it outlives a request except connections and counts on their way.

use crate::{auth::AdminToken, config::Config, downloads::Counts, source::Sources, upload::Underway};
use cratemill_protocol::token::Signer;
use cratemill_service::bus::Bus;
use cratemill_store::{PgPool, database, objects::Objects};
use std::sync::Arc;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone)]
pub struct App {
    pub config: Arc<Config>,
    pub pool: PgPool,
    /// Jobs are queued here: [`database::for_queue`].
    pub(crate) queue: PgPool,
    pub bus: Bus,
    pub objects: Objects,
    pub signer: Signer,
    pub(crate) admin: AdminToken,
    pub counts: Counts,
    pub sources: Sources,
    pub uploads: Underway,
    /// Work that goes on when its client is gone: cleaning up after it.
    pub tasks: TaskTracker,
}

impl App {
    pub fn new(config: Config, pool: PgPool, bus: Bus) -> anyhow::Result<Self> {
        Ok(Self {
            objects: Objects::new(&config.objects),
            signer: Signer::new(config.token_secret.as_bytes()),
            admin: AdminToken::new(&config.admin_token),
            counts: Counts::new(&config.node, cratemill_service::clock::now_ms()),
            sources: Sources::new(&config)?,
            uploads: Underway::default(),
            tasks: TaskTracker::new(),
            config: Arc::new(config),
            queue: database::for_queue(&pool),
            pool,
            bus,
        })
    }
}

//! Publish and subscribe in CBOR over WebSocket: `GET /ws/{session}`.
//!
//! ```text
//! handshake -> [attach]: the session is this connection's, wherever it was -> a reactor
//! messages  -> reactor -> Order -> [work] -> [commands] -> [log], [queue] -> Answers -> reactor
//! Issues    -> feed -> channel of the subscription -> reactor
//! pongs     -> how far the client is -> [keep] -> pubsub_sessions
//! ```
//! What is published is on the bus, in the stream PUBSUB, and an id says where; who subscribes to what is in the database.
//! So a session goes on at any node, and a node that dies takes nothing with it but what it wrote to clients that have not
//! said that they have it: these get it again.

mod attach;
mod commands;
mod keep;
mod log;
mod queue;
mod session;
mod sessions;
mod speak;
mod work;

pub use session::Session;
pub use sessions::{Packed, Sessions};

use crate::{auth::Access, config::CborConfig, gateway::Gateway};
use axum::Router;
use cratemill_service::Context;
use cratemill_store::PgPool;
use queue::Queues;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc};

use crate::reactor::Order;

#[derive(Debug)]
pub struct Cbor {
    gateway: Gateway,
    pool: PgPool,
    access: Arc<Access>,
    /// This run of this node.
    node: String,
    sessions: Arc<Sessions>,
    queues: Queues,
    /// Bytes of a publication.
    most: usize,
    /// Bytes of answers that are made at this moment.
    answers: Semaphore,
    require_v4: bool,
    kept: Duration,
}

impl Cbor {
    pub fn start(
        config: &CborConfig,
        gateway: Gateway,
        access: Arc<Access>,
        pool: PgPool,
        (sessions, orders): (Arc<Sessions>, mpsc::UnboundedReceiver<Order>),
        context: &Context,
    ) -> Arc<Self> {
        let this = Arc::new_cyclic(|this| Self {
            queues: Queues::new(this.clone(), Duration::from_secs(config.ack_wait_s.into())),
            gateway,
            pool,
            access,
            node: format!("{:016x}", rand::random::<u64>()),
            sessions,
            most: config.max_publication_bytes as usize,
            answers: Semaphore::new(log::ANSWERS_BYTES),
            require_v4: config.require_v4_sessions,
            kept: Duration::from_secs(u64::from(config.session_days) * 24 * 3_600),
        });
        context.spawn(work::run(Arc::clone(&this), orders));
        context.spawn(keep::run(Arc::clone(&this), context.shutdown.clone()));
        context.essential("sessions", attach::let_go(Arc::clone(&this), context.shutdown.clone()));
        this
    }
}

/// A frame may be twice as long as what it brings, which is an array of numbers, and has some words around it.
pub fn max_message(config: &CborConfig) -> usize {
    config.max_publication_bytes as usize * 2 + 4 * 1024
}

pub fn router(cbor: Arc<Cbor>) -> Router {
    attach::router(cbor)
}

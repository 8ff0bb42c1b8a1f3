//! Builders' WebSockets: the login, and what goes between a builder and the bus.
//!
//! [`session`] and [`ready`] decide, [`connection`] does the I/O of one socket, [`attempt`] keeps the order of one attempt's
//! messages, [`inbox`] brings what the bus says to this node, [`liveness`] says that it lives and finds what messages missed.

mod attempt;
mod bucket;
mod connection;
mod connections;
mod database;
mod demand;
mod effects;
mod groups;
mod inbox;
mod liveness;
mod lobby;
mod log;
mod ready;
mod returns;
mod session;

#[cfg(test)]
mod session_tests;

use crate::{App, Sources, address, problem::Problem};
use axum::{
    Extension, Router,
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, header},
    response::Response,
    routing::get,
};
use connections::Connections;
use cratemill_protocol::{
    builder::{MAX_FRAME_BYTES, SUBPROTOCOL_JSON, SUBPROTOCOL_MSGPACK},
    codec::Encoding,
    token::Signer,
};
use cratemill_service::{bus::Bus, clock, http::PeerAddr};
use cratemill_store::{PgPool, nodes::Run};
use groups::{Groups, Means};
use lobby::Lobby;
use returns::Returns;
use session::Config;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Keys looked up at once: what strangers ask leaves most of the database's connections to those who are in.
const MAX_LOOKUPS: usize = 4;
/// A WebSocket's own buffers: small, since an idle builder sends nothing. Larger frames grow them for a moment.
const READ_BUFFER_BYTES: usize = 512;
/// Answers and bus messages that wait for a connection's loop.
const INPUTS: usize = 256;

/// All builders' connections of this node.
#[derive(Debug)]
pub(crate) struct Sockets {
    pool: PgPool,
    bus: Bus,
    signer: Signer,
    sources: Sources,
    run: Run,
    config: Arc<Config>,
    connections: Mutex<Connections>,
    groups: Groups,
    /// Whether builders may log in: this node hears what is said to it.
    open: AtomicBool,
    lobby: Arc<Lobby>,
    lookups: Arc<Semaphore>,
    returns: Returns,
    rates: log::Rates,
    /// Every connection, and every attempt that still has something to store.
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Sockets {
    /// And what is to run for as long as it serves.
    pub(crate) fn new(
        app: &App,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + use<>) {
        let (groups, work) = groups::groups();
        let means = Means {
            pool: cratemill_store::database::for_queue(&app.pool),
            bus: app.bus.clone(),
            node: app.config.node.clone(),
            lease_s: i32::try_from(app.config.lease_s).unwrap_or(i32::MAX),
        };
        let sockets = Self {
            pool: app.pool.clone(),
            bus: app.bus.clone(),
            signer: app.signer.clone(),
            sources: app.sources.clone(),
            run: Run { name: app.config.node.clone(), epoch: clock::now_ms() },
            config: Arc::new(Config {
                server: app.config.public_url.to_string(),
                heartbeat_s: app.config.heartbeat_s,
                lease_s: app.config.lease_s,
                login_timeout: Duration::from_secs(u64::from(app.config.login_timeout_s)),
            }),
            connections: Mutex::default(),
            groups,
            open: AtomicBool::new(false),
            lobby: Arc::default(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            returns: Returns::default(),
            rates: log::Rates::default(),
            tasks: TaskTracker::new(),
            shutdown,
        };
        (Arc::new(sockets), work.run(means))
    }

    /// `GET /api/v1/builder`.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new().route("/api/v1/builder", get(upgrade)).with_state(self.clone())
    }

    /// Brings bus messages to connections and keeps their sessions alive in the database, until the node drains and
    /// every connection has ended and stored what it received.
    pub(crate) async fn run(
        self: Arc<Self>,
        groups: impl Future<Output = ()>,
        mut schema: crate::schema::Ready,
    ) -> anyhow::Result<()> {
        let serve = async {
            tokio::select! {
                // Until then the tables may be missing.
                _ = schema.wait() => inbox::run(&self).await,
                () = self.shutdown.cancelled() => {}
            }
            self.tasks.close();
            self.tasks.wait().await;
        };
        tokio::select! {
            () = serve => {}
            () = groups => {}
        }
        Ok(())
    }

    /// For `/readyz`: a load balancer sends builders only where they are let in.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.open.load(Ordering::Acquire) { Ok(()) } else { Err("they are not let in yet".to_owned()) }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn upgrade(
    State(sockets): State<Arc<Sockets>>,
    Extension(peer): Extension<PeerAddr>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let encoding = offered(&headers).ok_or_else(|| {
        let spoken = format!("{SUBPROTOCOL_MSGPACK}, {SUBPROTOCOL_JSON}");
        Problem::bad_request(format!("offer one of the subprotocols that this node speaks: {spoken}"))
    })?;
    if !sockets.open.load(Ordering::Acquire) {
        return Err(Problem::unavailable("this node lets no builder in yet"));
    }
    let place = sockets.lobby.enter(address::of(&headers, peer));
    let upgrade = upgrade
        .protocols([encoding.subprotocol()])
        .max_message_size(MAX_FRAME_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_FRAME_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let tasks = sockets.tasks.clone();
        // Tracked, so that a drain waits for the close frame to be sent.
        tasks.track_future(connection::run(socket, encoding, sockets, place)).await;
    }))
}

/// The best subprotocol that the builder offers and this node speaks.
fn offered(headers: &HeaderMap) -> Option<Encoding> {
    let offers: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    [SUBPROTOCOL_MSGPACK, SUBPROTOCOL_JSON]
        .into_iter()
        .find(|name| offers.contains(name))
        .and_then(Encoding::of_subprotocol)
}

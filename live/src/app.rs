//! Puts the parts together: connect, feed, serve, drain.

use crate::{
    auth::Access,
    cbor::{self, Cbor, Sessions},
    config::{Config, DialectName},
    engine::{Engine, Source, archive::Archive, backfill::Backfills, feed, hub::Hub, seats::Seats},
    event_api::{self, EventApi},
    gateway::Gateway,
    native::{self, Native},
    origin::Origins,
    problem::Problem,
    reactor::{self, Guests, Reactors},
    ws,
};
use axum::Router;
use cratemill_scheduler::Scheduler;
use cratemill_service::{Context, backoff::Backoff, bus::Bus, http, streams, take_over};
use cratemill_store::{PgPool, database, objects::Objects};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

/// A peer that acknowledges nothing, or takes nothing, for so many heartbeats is gone.
const PEER_HEARTBEATS: u64 = 4;
/// Longer than any pause of a line that works.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// Viewers that take their last bytes take them by then; the others must not hold up the end of the process.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Runs a gateway within a program that has a Tokio runtime, and its own way to log, until it is sent SIGTERM or SIGINT,
/// or `shutdown` is cancelled.
pub async fn run_until(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let drain = Duration::from_secs(config.process.drain_s);
    cratemill_service::run_here("live", drain, shutdown, |context| serve(config, context)).await
}

/// As [`run_until`], until a signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    run_until(config, CancellationToken::new()).await
}

/// What a process of its own runs.
pub async fn serve(config: Config, context: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.nats.nats_url, "live").await?;
    let pool = cratemill_store::connect(&config.database.database_url, "cratemill-live");
    let hub = Arc::new(Hub::new(sources(&config)));
    let heartbeat = Duration::from_secs(config.viewer_heartbeat_s);
    let seats = Seats::new(config.max_viewers as usize);
    let (asks, asked) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::unbounded_channel();
    let rules = reactor::rules(cbor::max_message(&config.cbor));
    let sessions = Sessions::new();
    let guests = Guests { orders, sessions: Arc::clone(&sessions), rules };
    let (reactors, ended) = Reactors::start(config.reactors(), &hub, &seats, &asks, &guests, heartbeat)?;
    // They are the reactors': whoever takes them has an end then.
    drop((asks, guests));
    let gateway = Gateway {
        hub: Arc::clone(&hub),
        bus: bus.clone(),
        backfills: Arc::new(Backfills::new(bus.jetstream.clone())),
        reactors: Arc::clone(&reactors),
        seats,
        followers: Arc::new(Semaphore::new(config.max_followers as usize)),
        shutdown: context.shutdown.clone(),
    };
    watch_health(&context, &bus, &hub);
    context.spawn(migrate(pool.clone(), context.shutdown.clone()));
    context.spawn(drain(Arc::clone(&reactors), context.shutdown.clone()));
    context.essential("feed", feed::run(bus.clone(), hub, context.shutdown.clone()));
    context.essential("reactors", ended);
    if !config.speaks(DialectName::Native) {
        make_streams(&config, &context, &bus);
    }
    if config.schedules() {
        let scheduler = Scheduler { pool: pool.clone(), bus: bus.clone(), jobs: None };
        context.essential("scheduler", cratemill_scheduler::run(scheduler, context.shutdown.clone()));
    }
    let access = Arc::new(Access::new(config.live_token_secret.as_ref()));
    let mut router = context.health.router().fallback(async || Problem::not_found("there is nothing here"));
    if let Some(native) = native(&config, &gateway, &pool, &access) {
        context.spawn(ws::run(native.clone(), asked, context.shutdown.clone()));
        router = router.merge(native::router(&native));
    }
    if config.speaks(DialectName::Cbor) {
        let (gateway, pool) = (gateway.clone(), pool.clone());
        let cbor = Cbor::start(&config.cbor, gateway, access, pool, (sessions, ordered), &context);
        router = router.merge(cbor::router(cbor));
    }
    if config.speaks(DialectName::Events) {
        let api = EventApi::start(&config.event_api, gateway, pool, &context);
        router = router.merge(event_api::router(api, config.event_api.origin.as_ref()));
    }
    let served = async { answer(listen(&config)?, router, context.shutdown).await };
    let served = served.await;
    reactors.end();
    served
}

/// The streams that are followed for those that this node speaks with.
fn sources(config: &Config) -> Vec<Source> {
    let of = |dialect| match dialect {
        DialectName::Native => &[Source::Events, Source::Logs, Source::Topics][..],
        DialectName::Events => &[Source::Timeline],
        DialectName::Cbor => &[Source::Pubsub],
    };
    let wanted: Vec<Source> = config.dialects.iter().flat_map(|dialect| of(*dialect)).copied().collect();
    Source::ALL.into_iter().filter(|source| wanted.contains(source)).collect()
}

fn native(config: &Config, gateway: &Gateway, pool: &PgPool, access: &Arc<Access>) -> Option<Native> {
    let objects = config.native.objects.as_ref().filter(|_| config.speaks(DialectName::Native))?;
    let archive = Archive { pool: pool.clone(), objects: Objects::new(objects) };
    let engine = Engine {
        hub: Arc::clone(&gateway.hub),
        bus: gateway.bus.clone(),
        archive,
        heartbeat: Duration::from_secs(config.viewer_heartbeat_s),
    };
    Some(Native {
        gateway: gateway.clone(),
        engine: Arc::new(engine),
        access: Arc::clone(access),
        origins: Arc::new(Origins::new(config.native.cors_origin.clone())),
    })
}

/// Where no dispatcher does: those that this node speaks of.
fn make_streams(config: &Config, context: &Context, bus: &Bus) {
    let (replicas, shutdown) = (usize::from(config.event_api.nats_replicas), context.shutdown.clone());
    let (bus, sources) = (bus.clone(), sources(config));
    context.spawn(async move {
        let wanted = |name: &str| sources.iter().any(|source| source.stream() == name);
        if let Err(error) = streams::ensure_some(&bus, replicas, wanted, &shutdown).await {
            tracing::error!(error = format!("{error:#}"), "cannot make the streams");
        }
    });
}

/// Viewers are told before the HTTP server has ended, which waits for others.
async fn drain(reactors: Arc<Reactors>, shutdown: CancellationToken) {
    shutdown.cancelled().await;
    reactors.drain();
}

/// Only what every viewer needs: without the database or the object store events go on, and another node has no more.
fn watch_health(context: &Context, bus: &Bus, hub: &Arc<Hub>) {
    let bus = bus.clone();
    context.health.require("nats", move || {
        let result = bus.check();
        async { result }
    });
    let hub = Arc::clone(hub);
    context.health.require("streams", move || {
        let result = hub.positions().map(|_| ()).ok_or_else(|| "not found yet".to_owned());
        async { result }
    });
}

/// Until it works: the database may come after us.
async fn migrate(pool: PgPool, shutdown: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    while let Err(error) = database::migrate(&pool).await {
        tracing::warn!(%error, "cannot bring the schema up to date yet");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let listener = http::bind(config.process.listen)?;
    let patience = Duration::from_secs(config.viewer_heartbeat_s * PEER_HEARTBEATS);
    http::drop_stalled(&listener, patience.max(PEER_PATIENCE))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

async fn answer(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        result = take_over::serve(listener, router, shutdown.clone()) => result,
        () = deadline => {
            tracing::warn!("some viewers did not take their last bytes");
            Ok(())
        }
    }
}

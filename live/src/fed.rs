//! The dialects that the bus feeds: ours, the event API, and CBOR.

use crate::{
    auth::Access,
    cbor::{self, Cbor, Sessions},
    config::{Config, DialectName},
    engine::{Engine, Source, archive::Archive, backfill::Backfills, feed, hub::Hub},
    event_api::{self, EventApi},
    gateway::{Entrance, Gateway},
    native::{self, Native},
    origin::Origins,
    reactor::{Ask, Order},
    ws,
};
use anyhow::Context as _;
use axum::Router;
use cratemill_scheduler::Scheduler;
use cratemill_service::{Context, backoff::Backoff, bus::Bus, streams};
use cratemill_store::{PgPool, database, objects::Objects};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc::UnboundedReceiver};
use tokio_util::sync::CancellationToken;

/// What reactors hear that they cannot do by themselves.
pub(crate) struct Heard {
    pub(crate) asked: UnboundedReceiver<Ask>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) ordered: UnboundedReceiver<Order>,
}

/// Connects, follows the streams, and returns what answers requests.
pub(crate) async fn start(
    config: &Config,
    context: &Context,
    hub: Arc<Hub>,
    entrance: Entrance,
    Heard { asked, sessions, ordered }: Heard,
) -> anyhow::Result<Router> {
    let nats = config.nats.as_ref().context("no bus is configured")?;
    let database = config.database.as_ref().context("no database is configured")?;
    let bus = Bus::connect(&nats.nats_url, "live").await?;
    let pool = cratemill_store::connect(database, "cratemill-live");
    let gateway = Gateway {
        hub: Arc::clone(&hub),
        bus: bus.clone(),
        backfills: Arc::new(Backfills::new(bus.jetstream.clone())),
        reactors: Arc::clone(&entrance.reactors),
        followers: Arc::new(Semaphore::new(config.max_followers as usize)),
        shutdown: entrance.shutdown.clone(),
        entrance,
    };
    watch_health(context, &bus, &hub);
    context.spawn(migrate(pool.clone(), context.shutdown.clone()));
    context.essential("feed", feed::run(bus.clone(), hub, context.shutdown.clone()));
    if !config.speaks(DialectName::Native) {
        make_streams(config, context, &bus);
    }
    if config.schedules() {
        let scheduler = Scheduler { pool: pool.clone(), bus: bus.clone(), jobs: None };
        context.essential("scheduler", cratemill_scheduler::run(scheduler, context.shutdown.clone()));
    }
    let access = Arc::new(Access::new(config.live_token_secret.as_ref()));
    let mut router = Router::new();
    if let Some(native) = native(config, &gateway, &pool, &access) {
        context.spawn(ws::run(native.clone(), asked, context.shutdown.clone()));
        router = router.merge(native::router(&native));
    }
    if config.speaks(DialectName::Cbor) {
        let (gateway, pool) = (gateway.clone(), pool.clone());
        let cbor = Cbor::start(&config.cbor, gateway, access, pool, (sessions, ordered), context);
        router = router.merge(cbor::router(cbor));
    }
    if config.speaks(DialectName::Events) {
        let api = EventApi::start(&config.event_api, gateway, pool, context);
        router = router.merge(event_api::router(api, config.event_api.origin.as_ref()));
    }
    Ok(router)
}

/// The streams that are followed for those that this node speaks with.
pub(crate) fn sources(config: &Config) -> Vec<Source> {
    let of = |dialect| match dialect {
        DialectName::Native => &[Source::Events, Source::Logs, Source::Topics][..],
        DialectName::Events => &[Source::Timeline],
        DialectName::Cbor => &[Source::Pubsub],
        DialectName::Mastodon => &[],
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

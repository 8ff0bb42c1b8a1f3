//! Puts the parts together: connect, feed, serve, drain.

use crate::{
    config::Config,
    engine::{Engine, archive::Archive, feed, hub::Hub},
    problem::Problem,
    sse::{self, Gateway},
};
use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method},
};
use cratemill_service::{Context, backoff::Backoff, bus::Bus, http};
use cratemill_store::{PgPool, database, objects::Objects};
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// A peer that acknowledges nothing, or takes nothing, for so many heartbeats is gone.
const PEER_HEARTBEATS: u64 = 2;
/// Viewers that take their last bytes take them by then; the others must not hold up the end of the process.
const LAST_BYTES: Duration = Duration::from_secs(5);

pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    let bus = Bus::connect(&config.nats.nats_url, "live").await?;
    let pool = cratemill_store::connect(&config.database.database_url, "cratemill-live");
    let archive = Archive { pool: pool.clone(), objects: Objects::new(&config.objects) };
    let hub = Arc::new(Hub::default());
    let heartbeat = Duration::from_secs(config.viewer_heartbeat_s);
    let engine = Engine { hub: Arc::clone(&hub), bus: bus.clone(), archive, heartbeat };
    let gateway = Gateway {
        engine: Arc::new(engine),
        places: Arc::new(Semaphore::new(config.max_viewers as usize)),
        shutdown: context.shutdown.clone(),
    };
    watch_health(&context, &bus, &hub);
    context.spawn(migrate(pool, context.shutdown.clone()));
    context.essential("feed", feed::run(bus, hub, context.shutdown.clone()));
    let listener = listen(&config).await?;
    serve(listener, router(&config, &context, gateway), context.shutdown).await
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

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let listener = http::bind(config.process.listen).await?;
    http::drop_stalled(&listener, Duration::from_secs(config.viewer_heartbeat_s * PEER_HEARTBEATS))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

fn router(config: &Config, context: &Context, gateway: Gateway) -> Router {
    sse::router(gateway)
        .merge(context.health.router())
        .fallback(async || Problem::not_found("there is nothing here: GET /live/events?topic=..."))
        .layer(cors(&config.cors_origin))
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET])
        .allow_headers([HeaderName::from_static("last-event-id"), HeaderName::from_static("cache-control")])
}

async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        result = http::serve(listener, router, shutdown.clone()) => result,
        () = deadline => {
            tracing::warn!("some viewers did not take their last bytes");
            Ok(())
        }
    }
}

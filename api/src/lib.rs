//! The API node: REST for everybody, operators' routes, the builders' WebSocket, upload and download.
//!
//! It keeps no state that another node does not have: jobs are in Postgres, bytes in the object store, and what happens
//! is on the bus. The exceptions are what it remembers of artifacts for a moment, and counts of downloads on their way to the bus, which a drain flushes.

mod address;
mod auth;
mod builders;
pub mod config;
mod crates;
mod cursor;
mod download;
mod downloads;
mod extract;
mod hot;
mod jobs;
mod latest;
mod log;
mod nodes;
mod observe;
mod openapi;
mod problem;
mod registry;
pub mod routes;
mod schema;
mod socket;
mod source;
mod state;
mod statistics;
mod upload;
mod views;

pub use config::Config;
pub use downloads::{Asker, Counts, Waiting};
pub use source::Sources;
pub use state::App;
pub use upload::Underway;

use anyhow::Context as _;
use axum::extract::Request;
use cratemill_service::{Context, bus::Bus, http};
use cratemill_store::objects;
use socket::Sockets;
use tokio_util::sync::CancellationToken;

/// Serves until the process drains.
pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    config.check().map_err(anyhow::Error::msg).context("the configuration is wrong")?;
    let listen = config.process.listen;
    tracing::info!(node = config.node, public_url = %config.public_url, "an API node");
    let pool = cratemill_store::connect(&config.database.database_url, "cratemill-api");
    let bus = Bus::connect(&config.nats.nats_url, "api").await?;
    let app = App::new(config, pool, bus)?;

    let schema = schema::migrate(&context, &app.pool);
    require(&app, &context, schema.clone());
    context.essential("watching the catalogue", app.clone().watch_catalogue(context.shutdown.clone()));
    // Downloads that are under way when the drain begins still count, so counting ends after them.
    let uncounted = CancellationToken::new();
    let flush = uncounted.clone().drop_guard();
    let counting = app.counts.clone().run(app.bus.clone(), app.config.waiting(), uncounted)?;
    context.essential("counting downloads", counting);

    let (sockets, groups) = Sockets::new(&app, context.shutdown.clone());
    let letting_in = sockets.clone();
    context.health.require("builders", move || std::future::ready(letting_in.check()));
    let router = routes::router(app.clone(), context.health.router().merge(sockets.router()))?;
    let listener = http::bind(listen)?;
    context.essential("builders' connections", sockets.run(groups, schema));
    let quick = app.clone();
    let shortcut = move |request: &Request<_>, peer| download::shortcut::answer(&quick, request, peer);
    http::serve_with(listener, router, shortcut, context.shutdown.clone()).await?;
    app.tasks.close();
    app.tasks.wait().await;
    drop(flush);
    Ok(())
}

/// What `/readyz` looks at.
fn require(app: &App, context: &Context, schema: schema::Ready) {
    let pool = app.pool.clone();
    context.health.require("postgres", move || {
        let (pool, schema) = (pool.clone(), schema.clone());
        async move {
            cratemill_store::database::check(&pool).await?;
            schema.check()
        }
    });
    // Downloads go on without it; a load balancer asks for it where it sends builders (`/readyz?with=nats`).
    let bus = app.bus.clone();
    context.health.watch("nats", move || std::future::ready(bus.check()));
    let objects = app.objects.clone();
    // Uploads and downloads wait for it; builders' connections and their leases do not.
    context.health.watch("object store", move || {
        let objects = objects.clone();
        async move { objects.check().await.map_err(|error| why(&error)) }
    });
}

/// For a probe, whoever sends it; the log has the rest.
fn why(error: &objects::Error) -> String {
    tracing::debug!(%error, "the object store is not ready");
    match error {
        objects::Error::NotFound(_) => "the bucket does not exist".into(),
        objects::Error::Range | objects::Error::Unavailable(_) => "it does not answer".into(),
    }
}

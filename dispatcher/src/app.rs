//! Puts the dispatcher together: connections, health, and one essential task per duty.

use crate::{
    assignment::{self, Assignment},
    cleanup,
    config::Config,
    counts, deadline,
    logs::{self, Archive},
    outbox, outcomes,
    registry::{self, answer::Refreshes, client::Registry, renewal},
    requests, rescue,
    wakes::{self, Wakes},
};
use anyhow::Context as _;
use cratemill_protocol::Target;
use cratemill_scheduler::Scheduler;
use cratemill_service::{
    Context,
    bus::Bus,
    http,
    outage::{Outage, pause},
    streams,
};
use cratemill_store::{PgPool, connect, database, objects::Objects, targets};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const NAME: &str = "cratemill-dispatcher";

/// Runs until the process drains. Dependencies may be missing at any time: /readyz says which.
pub async fn run(config: Config, context: Context) -> anyhow::Result<()> {
    let registry = Registry::new(config.registry.index.clone(), config.registry.registry_token.clone())?;
    let registry = Arc::new(registry);
    let pool = connect(&config.database.database_url, NAME);
    let objects = Objects::new(&config.objects);
    let bus = Bus::connect(&config.nats.nats_url, "dispatcher").await?;
    require(&context, &pool, &bus, &objects);
    let listener = http::bind(config.process.listen)?;
    let shutdown = context.shutdown.clone();
    context.essential("the HTTP server", http::serve(listener, context.health.router(), shutdown.clone()));

    if !prepare_database(&pool, &config.targets, &shutdown).await? {
        return Ok(());
    }
    start(&context, &config, &pool, &bus, &objects, registry);
    streams::ensure(&bus, usize::from(config.nats_replicas), &shutdown).await?;
    shutdown.cancelled().await;
    Ok(())
}

fn require(context: &Context, pool: &PgPool, bus: &Bus, objects: &Objects) {
    let (pool, bus, objects) = (pool.clone(), bus.clone(), objects.clone());
    context.health.require("postgres", move || {
        let pool = pool.clone();
        async move { database::check(&pool).await }
    });
    context.health.require("nats", move || {
        let bus = bus.clone();
        async move { bus.check() }
    });
    context.health.require("object store", move || {
        let objects = objects.clone();
        async move { objects.check().await.map_err(|error| error.to_string()) }
    });
}

/// Migrates and enables the targets, as soon as the database is there; false when the process drains first.
async fn prepare_database(
    pool: &PgPool,
    targets: &[Target],
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut outage = Outage::new("preparing the database");
    loop {
        let prepared = async {
            database::migrate(pool).await.context("cannot migrate")?;
            let mut conn = pool.acquire().await?;
            targets::ensure(&mut conn, targets).await.context("cannot enable the targets")
        };
        match prepared.await {
            Ok(()) => {
                outage.over();
                return Ok(true);
            }
            Err(error) => {
                if !pause(outage.failed(error), shutdown).await {
                    return Ok(false);
                }
            }
        }
    }
}

fn start(
    context: &Context,
    config: &Config,
    pool: &PgPool,
    bus: &Bus,
    objects: &Objects,
    registry: Arc<Registry>,
) {
    let wakes = Arc::new(Wakes::default());
    let shutdown = || context.shutdown.clone();
    let queue = database::for_queue(pool);
    let queue = || queue.clone();
    let (pool, bus, objects) = (|| pool.clone(), || bus.clone(), || objects.clone());
    let limits = config.limits.limits();

    context.essential("notifications", wakes::run(pool(), bus(), wakes.clone(), shutdown()));
    context.essential("requests", requests::run(queue(), bus(), wakes.clone(), shutdown()));
    let outcomes = outcomes::run((pool(), queue()), objects(), bus(), wakes.clone(), shutdown());
    context.essential("outcomes", outcomes);
    context.essential("rescue", rescue::run(pool(), bus(), wakes.clone(), config.catch_up(), shutdown()));
    let deadlines = deadline::run(pool(), wakes.clone(), limits.wall_s, shutdown());
    context.essential("deadlines", deadlines);
    context.essential("outbox", outbox::run(pool(), bus(), wakes.clone(), shutdown()));
    context.essential("clean-up", cleanup::run(pool(), objects(), shutdown()));
    context.essential("download counts", counts::run(pool(), objects(), shutdown()));

    let archive = Archive {
        pool: pool(),
        bus: bus(),
        objects: objects(),
        log_bytes: limits.log_bytes,
        empty: Arc::default(),
    };
    context.essential("logs", logs::run(archive, wakes.clone(), shutdown()));
    context.essential("log sweep", logs::sweep::run(pool(), bus(), shutdown()));

    context.essential("index configuration", renewal::run(registry.clone(), shutdown()));
    let refreshes = Refreshes::new(pool(), registry.clone());
    context.essential("registry requests", registry::answer::run(bus(), refreshes, shutdown()));
    let watch = registry::watch::run(pool(), registry.clone(), config.registry.clone(), shutdown());
    context.essential("registry watch", watch);

    let scheduler = Scheduler { pool: pool(), bus: bus(), jobs: Some(wakes.schedule.clone()) };
    context.essential("scheduler", cratemill_scheduler::run(scheduler, shutdown()));
    let assignment =
        Assignment { pool: queue(), bus: bus(), registry, wakes, limits, lease_s: config.lease_s };
    context.essential("assignment", assignment::run(assignment, shutdown()));
}

//! The Cratemill that is measured: with an empty registry, and artifacts seeded.

use super::seed::{self, Artifact};
use anyhow::{Context, Result};
use cratemill_stack::{
    Cluster, Options, Role,
    fixtures::{Registry, registry},
    services::Service,
};
use sqlx::{Connection, PgConnection};
use std::net::SocketAddr;

pub(super) struct Measured {
    pub(super) cluster: Cluster,
    pub(super) artifacts: Vec<Artifact>,
    // The dispatcher asks it once.
    _registry: Registry,
}

impl Measured {
    /// Postgres waits for the disk, as it does elsewhere; nobody looks at logs, and nobody builds.
    pub(super) async fn start(options: Options, artifacts: u32) -> Result<Self> {
        let registry = Registry::start(registry::Options::default()).await?;
        let options = Options { live: 0, builder: 0, durable: true, index: registry.index_url(), ..options };
        let options = options.with_env(Role::Dispatcher, "WATCH_INTERVAL_S", "3600");
        let cluster = Cluster::start(options.with_env(Role::Api, "DOWNLOADS", "redirect")).await?;
        let mut conn = PgConnection::connect(&cluster.postgres.url()).await?;
        let artifacts = seed::artifacts(&mut conn, artifacts).await?;
        Ok(Self { cluster, artifacts, _registry: registry })
    }

    /// All downloads that the table has.
    pub(super) async fn counted(&self) -> Result<u64> {
        let mut conn = PgConnection::connect(&self.cluster.postgres.url()).await?;
        counted(&mut conn).await
    }

    /// Of the API nodes.
    pub(super) fn nodes(&self) -> Result<Vec<SocketAddr>> {
        let address = |node: &Service| Some(node.port()?.address());
        self.cluster.api.iter().map(address).collect::<Option<_>>().context("an API node has no port")
    }
}

/// All downloads that the table has.
pub(super) async fn counted(conn: &mut PgConnection) -> Result<u64> {
    let sum: i64 = sqlx::query_scalar("SELECT coalesce(sum(count), 0)::bigint FROM downloads_daily")
        .fetch_one(conn)
        .await?;
    Ok(sum.try_into()?)
}

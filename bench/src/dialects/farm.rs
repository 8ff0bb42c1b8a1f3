//! Nodes that speak both dialects, alone: they schedule by themselves.

use crate::live::usage;
use anyhow::{Context, Result};
use cratemill_stack::{
    Role,
    data_dir::DataDir,
    nats::Nats,
    postgres::Postgres,
    process::Process,
    secrets::Secrets,
    services::{self, Service},
};
use cratemill_store::database;
use futures_util::future::try_join_all;
use sqlx::PgPool;
use std::{net::SocketAddr, time::Duration};

/// Dropping it ends every process; the order of the fields is the order of their end.
pub(super) struct Farm {
    nodes: Vec<Service>,
    pub(super) pool: PgPool,
    nats: Nats,
    postgres: Postgres,
    _data_dir: DataDir,
}

impl Farm {
    pub(super) async fn start(nodes: usize) -> Result<Self> {
        let data_dir = DataDir::temporary()?;
        let mut secrets = Secrets::open(data_dir.path())?;
        let postgres = Postgres::start(&data_dir, &mut secrets, false).await?;
        let nats = Nats::start(&data_dir, &mut secrets).await?;
        let bin_dir = services::bin_dir(None)?;
        let env = [
            ("DIALECTS", "events,cbor".to_owned()),
            ("DATABASE_URL", postgres.url()),
            ("NATS_URL", nats.url("admin")?),
            ("EVENTS_SECRET", secrets.get("events_secret")?),
            ("MAX_VIEWERS", "20000".to_owned()),
            ("MAX_EVENTS_PER_USER", "100000000".to_owned()),
        ];
        let node = |number| -> Result<Service> {
            let mut node = Service::new(Role::Live, number, &bin_dir, &data_dir.log())?;
            node.set_env(env.clone());
            Ok(node)
        };
        let mut nodes: Vec<Service> = (1..=nodes).map(node).collect::<Result<_>>()?;
        for node in &mut nodes {
            node.spawn().await?;
        }
        try_join_all(nodes.iter().map(Service::ready)).await?;
        let pool = PgPool::connect(&postgres.url()).await?;
        database::migrate(&pool).await?;
        Ok(Self { nodes, pool, nats, postgres, _data_dir: data_dir })
    }

    pub(super) fn address(&self, number: usize) -> Result<SocketAddr> {
        let node = &self.nodes[number % self.nodes.len()];
        Ok(node.port().context("a node has no port")?.address())
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Service::process).map(Process::pid).collect()
    }

    pub(super) fn cpu(&self) -> Result<Duration> {
        usage::cpu(&self.pids())
    }

    /// Of the database and the bus.
    pub(super) fn other_cpu(&self) -> Result<Duration> {
        let others = self.nats.processes().chain(self.postgres.process());
        usage::cpu(&others.map(Process::pid).collect::<Vec<_>>())
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.stop().await?;
        }
        self.pool.close().await;
        self.nats.stop().await?;
        self.postgres.stop().await
    }
}

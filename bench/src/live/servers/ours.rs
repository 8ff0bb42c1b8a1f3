//! Our gateway: nodes of `cratemill-live` on a real bus and database. Nobody else publishes there.

use super::v4;
use crate::live::{publisher::Publisher, usage};
use anyhow::{Context, Result};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{
    Role,
    data_dir::DataDir,
    nats::Nats,
    postgres::Postgres,
    process::Process,
    s3::{BUCKET, REGION, S3},
    secrets::Secrets,
    services::{self, Service},
};
use cratemill_store::database;
use futures_util::future::{join_all, try_join_all};
use sqlx::PgPool;
use std::{net::SocketAddrV4, time::Duration};
use tokio_util::sync::CancellationToken;

pub(in crate::live) const QUEUE_PATH: &str = "/live/events?topic=queue";
pub(in crate::live) const WEBSOCKET_PATH: &str = "/live/ws";
/// What such a viewer says first.
pub(in crate::live) const SUBSCRIBE: &str = r#"{"type":"subscribe","topic":"queue"}"#;
pub(in crate::live) const CRATE_PATH: &str = "/live/events?topic=crate.c{n}";
const JOB: &str = "
    WITH c AS (INSERT INTO crates (name, canonical) VALUES ('bench', 'bench') RETURNING id),
         v AS (INSERT INTO versions (crate_id, version, sha256) SELECT id, '1.0.0', repeat('0', 64) FROM c RETURNING id)
    INSERT INTO jobs (version_id, kind, target) SELECT id, 'tarball', 't' FROM v RETURNING id";
const RUNS: &str = "
    WITH b AS (INSERT INTO builders (name) VALUES ('bench') RETURNING id)
    INSERT INTO leases (job_id, attempt, builder_id, version_id, crate_id, krate, version, sha256, kind, target, features,
                        priority, run_at, tries, accepted_at, lease_until)
    SELECT $1, 1, b.id, v.id, c.id, c.name, v.version, v.sha256, 'tarball', 't', 'default', 10, now(), 0, now(), now()
    FROM b, jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id WHERE j.id = $1";
/// As many as a process may have connections, with some left for the bus and the database.
const MAX_VIEWERS: usize = 19_500;

/// Dropping it ends every process; the order of the fields is the order of their end.
pub(in crate::live) struct Ours {
    pub(in crate::live) nodes: Vec<Service>,
    bus: Bus,
    nats: Nats,
    postgres: Postgres,
    _s3: S3,
    _data_dir: DataDir,
}

impl Ours {
    pub(in crate::live) async fn start(nodes: usize) -> Result<Self> {
        let mut this = Self::prepare(nodes).await?;
        let all: Vec<usize> = (0..nodes).collect();
        this.start_nodes(&all).await?;
        Ok(this)
    }

    /// Everything but the nodes, which have their ports.
    pub(in crate::live) async fn prepare(nodes: usize) -> Result<Self> {
        let data_dir = DataDir::temporary()?;
        let mut secrets = Secrets::open(data_dir.path())?;
        let s3 = S3::start(&data_dir, &mut secrets).await?;
        let postgres = Postgres::start(&data_dir, &mut secrets, false).await?;
        let nats = Nats::start(&data_dir, &mut secrets).await?;
        let bus = Bus::connect(&nats.url("admin")?.parse().map_err(anyhow::Error::msg)?, "bench").await?;
        streams::ensure(&bus, 1, &CancellationToken::new()).await?;
        let bin_dir = services::bin_dir(None)?;
        let env = [
            ("DATABASE_URL", postgres.url()),
            ("NATS_URL", nats.url("live")?),
            ("S3_ENDPOINT", s3.endpoint()),
            ("S3_BUCKET", BUCKET.to_owned()),
            ("S3_REGION", REGION.to_owned()),
            ("S3_ACCESS_KEY", s3.access_key().to_owned()),
            ("S3_SECRET_KEY", s3.secret_key().to_owned()),
            ("MAX_VIEWERS", MAX_VIEWERS.to_string()),
        ];
        let node = |number| -> Result<Service> {
            let mut node = Service::new(Role::Live, number, &bin_dir, &data_dir.log())?;
            node.set_env(env.clone());
            Ok(node)
        };
        let nodes = (1..=nodes).map(node).collect::<Result<_>>()?;
        Ok(Self { nodes, bus, nats, postgres, _s3: s3, _data_dir: data_dir })
    }

    /// Those of these positions, and waits until they can serve.
    pub(in crate::live) async fn start_nodes(&mut self, positions: &[usize]) -> Result<()> {
        for position in positions {
            self.nodes[*position].spawn().await?;
        }
        try_join_all(positions.iter().map(|position| self.nodes[*position].ready())).await.map(drop)
    }

    pub(in crate::live) fn addresses(&self) -> Result<Vec<SocketAddrV4>> {
        self.nodes.iter().map(|node| v4(node.port().context("a node has no port")?.address())).collect()
    }

    pub(in crate::live) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// A new job, which runs.
    pub(in crate::live) async fn job(&self) -> Result<i64> {
        let pool = PgPool::connect(&self.postgres.url()).await?;
        // A node that is ready may not have done so yet.
        database::migrate(&pool).await?;
        let job = sqlx::query_scalar(JOB).fetch_one(&pool).await.context("cannot make a job")?;
        sqlx::query(RUNS).bind(job).execute(&pool).await.context("cannot have a job run")?;
        Ok(job)
    }

    pub(in crate::live) fn publisher(&self, topics: usize) -> Publisher {
        Publisher::bus(self.bus.clone(), topics)
    }

    /// Of the nodes that run.
    pub(in crate::live) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Service::process).map(Process::pid).collect()
    }

    pub(in crate::live) fn bus_cpu(&self) -> Result<Duration> {
        usage::cpu(&self.nats.processes().map(Process::pid).collect::<Vec<_>>())
    }

    pub(in crate::live) async fn stop(mut self) -> Result<()> {
        let mut results = join_all(self.nodes.iter_mut().map(Service::stop)).await;
        results.push(self.nats.stop().await);
        results.push(self.postgres.stop().await);
        results.into_iter().collect()
    }
}

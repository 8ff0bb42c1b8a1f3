//! A Postgres server for queues alone, ours and others': the same for all, and a database of its own for each run.

use crate::cpu;
use anyhow::{Context, Result};
use cratemill_stack::{data_dir::DataDir, postgres::Postgres, secrets::Secrets};
use sqlx::{Connection, PgConnection};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

pub(super) struct Server {
    postgres: Postgres,
    databases: AtomicU32,
    // Removed after the server has ended.
    _data_dir: DataDir,
}

impl Server {
    pub(super) async fn start() -> Result<Self> {
        let data_dir = DataDir::temporary()?;
        let postgres = Postgres::start(&data_dir, &mut Secrets::open(data_dir.path())?, true).await?;
        Ok(Self { postgres, databases: AtomicU32::new(0), _data_dir: data_dir })
    }

    /// CPU time that the server and its sessions have used.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu::of_tree(self.postgres.process().context("Postgres is not running")?.pid())
    }

    /// The URL of a new, empty database.
    pub(super) async fn database(&self) -> Result<String> {
        let url = self.postgres.url();
        let name = format!("run{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        let mut conn = PgConnection::connect(&url).await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await?;
        // What earlier runs wrote is on the disk before this one begins.
        sqlx::query("CHECKPOINT").execute(&mut conn).await?;
        let (server, _) = url.rsplit_once('/').unwrap_or((&url, ""));
        Ok(format!("{server}/{name}"))
    }
}

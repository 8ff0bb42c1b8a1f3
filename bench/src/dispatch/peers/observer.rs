//! What a peer costs its Postgres, looked at from beside it.

use anyhow::{Result, ensure};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What the connections of a peer call themselves.
pub(super) const APPLICATION: &str = "bench-peer";
/// A backend leaves within milliseconds of its client.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
const LEAVE_POLL: Duration = Duration::from_millis(10);

pub(super) struct Observer {
    connection: PgConnection,
    schema: &'static str,
}

impl Observer {
    pub(super) async fn connect(url: &str, schema: &'static str) -> Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        Ok(Self { connection: options.connect().await?, schema })
    }

    /// That the server ever wrote.
    pub(super) async fn wal_bytes(&mut self) -> Result<f64> {
        let bytes = sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8");
        Ok(bytes.fetch_one(&mut self.connection).await?)
    }

    /// That the peer's tables ever had. A backend may keep its counts to itself until it ends, so the peer must have
    /// closed its connections.
    pub(super) async fn dead_row_versions(&mut self) -> Result<f64> {
        self.peer_left().await?;
        let versions = sqlx::query_scalar(
            "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::float8 FROM pg_stat_user_tables WHERE schemaname = $1",
        );
        Ok(versions.bind(self.schema).fetch_one(&mut self.connection).await?)
    }

    async fn peer_left(&mut self) -> Result<()> {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        loop {
            let here = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1",
            );
            let here: i64 = here.bind(APPLICATION).fetch_one(&mut self.connection).await?;
            if here == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{here} connections of the peer are left after {LEAVE_TIMEOUT:?}"
            );
            sleep(LEAVE_POLL).await;
        }
    }
}

/// A transaction that sees the database as it was: what dies since cannot be removed.
pub(super) struct OldSnapshot(PgConnection);

impl OldSnapshot {
    pub(super) async fn hold(url: &str) -> Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        let mut connection = options.connect().await?;
        // The snapshot is taken by the first query, not by BEGIN.
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class";
        sqlx::raw_sql(begin).execute(&mut connection).await?;
        Ok(Self(connection))
    }

    /// An error if it was lost in between.
    pub(super) async fn release(mut self) -> Result<()> {
        sqlx::raw_sql("SELECT 1 FROM pg_class; COMMIT").execute(&mut self.0).await?;
        Ok(self.0.close().await?)
    }
}

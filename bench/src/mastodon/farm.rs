//! A Mastodon's Redis and database, as far as a streaming server looks, and one node.

use crate::live::usage;
use anyhow::{Context, Result};
use cratemill_stack::{
    Role,
    data_dir::DataDir,
    fixtures::mastodon,
    postgres::Postgres,
    process::Process,
    redis::Redis,
    secrets::Secrets,
    services::{self, Service},
};
use sqlx::PgPool;
use std::{net::SocketAddr, time::Duration};

/// Accounts that others may block.
pub(super) const AUTHORS: i64 = 1_000;

/// Dropping it ends every process; the order of the fields is the order of their end.
pub(super) struct Farm {
    node: Service,
    redis: Redis,
    postgres: Postgres,
    _data_dir: DataDir,
}

impl Farm {
    /// With so many accounts beside the authors, each with a token, and things that it does not want to see.
    pub(super) async fn start(accounts: usize) -> Result<Self> {
        let data_dir = DataDir::temporary()?;
        let mut secrets = Secrets::open(data_dir.path())?;
        let postgres = Postgres::start(&data_dir, &mut secrets, false).await?;
        let redis = Redis::start(&data_dir).await?;
        seed(&postgres.url(), i64::try_from(accounts)?).await?;
        let mut node = Service::new(Role::Live, 1, &services::bin_dir(None)?, &data_dir.log())?;
        node.set_env([
            ("DIALECTS", "mastodon".to_owned()),
            ("DATABASE_URL", postgres.url()),
            ("REDIS_URL", redis.url()),
            ("MAX_VIEWERS", "20000".to_owned()),
        ]);
        node.spawn().await?;
        node.ready().await?;
        Ok(Self { node, redis, postgres, _data_dir: data_dir })
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(self.node.port().context("the node has no port")?.address())
    }

    pub(super) fn redis(&self) -> SocketAddr {
        self.redis.address()
    }

    fn pids(&self) -> Vec<u32> {
        self.node.process().map(Process::pid).into_iter().collect()
    }

    pub(super) fn cpu(&self) -> Result<Duration> {
        usage::cpu(&self.pids())
    }

    pub(super) async fn memory(&self) -> Result<f64> {
        usage::settled_pss(&self.pids()).await
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.node.stop().await?;
        self.redis.stop().await?;
        self.postgres.stop().await
    }
}

/// The token of an account.
pub(super) fn token(account: usize) -> String {
    format!("token-{account}")
}

async fn seed(url: &str, accounts: i64) -> Result<()> {
    let pool = PgPool::connect(url).await?;
    sqlx::raw_sql(mastodon::SCHEMA).execute(&pool).await?;
    // Authors have the ids from a million on.
    for sql in [
        "INSERT INTO accounts (id, username) SELECT n, 'u' || n FROM generate_series(1, $1) n",
        "INSERT INTO users (id, account_id, chosen_languages) SELECT n, n, ARRAY['en', 'de'] FROM generate_series(1, $1) n",
        "INSERT INTO oauth_access_tokens (id, token, resource_owner_id, scopes)
         SELECT n, 'token-' || n, n, 'read' FROM generate_series(1, $1) n",
        "INSERT INTO blocks (account_id, target_account_id)
         SELECT n, 1000000 + (n * 7 + k * 13) % 1000 FROM generate_series(1, least($1, 1000)) n, generate_series(1, 20) k",
        "INSERT INTO blocks (account_id, target_account_id)
         SELECT 1000000 + (n * 11 + k * 17) % 1000, n FROM generate_series(1, least($1, 1000)) n, generate_series(1, 5) k",
        "INSERT INTO mutes (account_id, target_account_id)
         SELECT n, 1000000 + (n * 3 + k * 19) % 1000 FROM generate_series(1, least($1, 1000)) n, generate_series(1, 10) k",
        "INSERT INTO account_domain_blocks (account_id, domain)
         SELECT n, 'd' || (n * 5 + k) % 100 || '.example' FROM generate_series(1, least($1, 1000)) n, generate_series(1, 3) k",
        "INSERT INTO custom_filters (id, account_id, phrase, context)
         SELECT n * 10 + k, n, 'filter ' || k, ARRAY['public'] FROM generate_series(1, least($1, 1000)) n, generate_series(1, 2) k",
        "INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word)
         SELECT n * 10 + k, 'word' || (n * 31 + k * 7 + w) % 500, w = 1
         FROM generate_series(1, least($1, 1000)) n, generate_series(1, 2) k, generate_series(1, 3) w",
    ] {
        sqlx::query(sql).bind(accounts).execute(&pool).await?;
    }
    sqlx::raw_sql("ANALYZE").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

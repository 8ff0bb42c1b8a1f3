//! Bringing the database's schema up to date at the start, as soon as there is a database.

use anyhow::Context as _;
use cratemill_service::{Context, backoff::Backoff};
use cratemill_store::{PgPool, database};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Whether the schema is up to date.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<AtomicBool>);

impl Ready {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Acquire) { Ok(()) } else { Err("the schema is not up to date yet".into()) }
    }
}

/// Migrates beside the service; a schema that this program cannot use ends the process.
pub(crate) fn migrate(context: &Context, pool: &PgPool) -> Ready {
    let ready = Ready::default();
    let (done, pool, shutdown) = (ready.clone(), pool.clone(), context.shutdown.clone());
    context.essential("migrating the database", async move {
        until_done(&pool, &shutdown).await?;
        done.0.store(true, Ordering::Release);
        // An essential task lives as long as the service.
        shutdown.cancelled().await;
        Ok(())
    });
    ready
}

async fn until_done(pool: &PgPool, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match database::migrate(pool).await {
            Ok(()) => return Ok(()),
            Err(sqlx::migrate::MigrateError::Execute(error)) if crate::problem::is_away(&error) => {
                tracing::warn!(%error, "cannot migrate yet");
            }
            Err(error) => {
                return Err(error).context("the database has a schema that this program cannot use");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

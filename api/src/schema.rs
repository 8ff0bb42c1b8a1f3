//! Bringing the database's schema up to date at the start, as soon as there is a database.

use anyhow::Context as _;
use cratemill_service::{Context, backoff::Backoff};
use cratemill_store::{PgPool, database};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whether the schema is up to date.
#[derive(Debug, Clone)]
pub(crate) struct Ready(watch::Receiver<bool>);

impl Ready {
    pub(crate) fn check(&self) -> Result<(), String> {
        if *self.0.borrow() { Ok(()) } else { Err("the schema is not up to date yet".into()) }
    }

    /// Returns once it is; false if the process ends first.
    pub(crate) async fn wait(&mut self) -> bool {
        self.0.wait_for(|done| *done).await.is_ok()
    }
}

/// Migrates beside the service; a schema that this program cannot use ends the process.
pub(crate) fn migrate(context: &Context, pool: &PgPool) -> Ready {
    let (done, ready) = watch::channel(false);
    let (pool, shutdown) = (pool.clone(), context.shutdown.clone());
    context.essential("migrating the database", async move {
        until_done(&pool, &shutdown).await?;
        done.send_replace(true);
        // An essential task lives as long as the service.
        shutdown.cancelled().await;
        Ok(())
    });
    Ready(ready)
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

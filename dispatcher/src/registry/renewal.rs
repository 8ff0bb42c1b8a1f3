//! Keeps the index's `config.json` fresh, in a task of its own: a registry that hangs keeps nobody waiting who has one.

use super::client::Registry;
use cratemill_service::outage::{Outage, pause};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A registry seldom changes where its files are.
const INTERVAL: Duration = Duration::from_hours(1);
/// After a failure the old configuration serves on, and the registry is asked again after this.
const RETRY: Duration = Duration::from_secs(10);

pub async fn run(registry: Arc<Registry>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("reading the index's config.json");
    // The first one is shared with whoever needs it by then.
    let mut first = true;
    loop {
        let read =
            async { if first { registry.config().await.map(drop) } else { registry.renew_config().await } };
        let Some(result) = shutdown.run_until_cancelled(read).await else { return Ok(()) };
        let wait = match result {
            Ok(()) => {
                outage.over();
                first = false;
                INTERVAL
            }
            Err(error) => outage.failed(error).max(RETRY),
        };
        if !pause(wait, &shutdown).await {
            return Ok(());
        }
    }
}

//! A peer: each download is an upsert of its own, in a transaction of its own, from many connections at once.

use super::{
    events::Event,
    peer::{self, Progress},
};
use crate::downloads::cluster::Measured;
use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use std::{sync::Arc, time::Duration};
use time::Date;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const UPSERT: &str = "
    INSERT INTO peer_daily (artifact_id, day, client, count) VALUES ($1, $2, $3, 1)
    ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = peer_daily.count + 1";

/// Events a second, over so many connections: transactions that commit at the same time share a sync of the log.
pub(super) async fn measure(
    measured: &Measured,
    events: &Arc<Vec<Event>>,
    day: Date,
    connections: usize,
    time: Duration,
) -> Result<f64> {
    let url = measured.cluster.postgres.url();
    peer::table(&url).await?;
    let (stop, progress, mut tasks) = (CancellationToken::new(), Progress::default(), JoinSet::new());
    for number in 0..connections {
        let mut conn = PgConnection::connect(&url).await?;
        let (stop, progress, events) = (stop.clone(), progress.clone(), Arc::clone(events));
        tasks.spawn(async move {
            let mut at = events.len() / connections * number;
            while !stop.is_cancelled() {
                let Event { artifact, class } = events[at % events.len()];
                sqlx::query(UPSERT).bind(artifact).bind(day).bind(class).execute(&mut conn).await?;
                progress.add(1);
                at += 1;
            }
            anyhow::Ok(())
        });
    }
    let events_per_s = progress.watch(time).await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection broke")??;
    }
    peer::check(&url, progress.all()).await?;
    Ok(events_per_s)
}

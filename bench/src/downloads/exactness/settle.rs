//! The end of a run: everything is back, all that is held is counted, and the table is read.

use super::{
    load::Load,
    tally::{Row, Verdict},
};
use crate::downloads::{cluster::Measured, day};
use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream;
use cratemill_protocol::subjects;
use sqlx::{Connection, PgConnection};
use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// For all processes to be ready, and the bus to be whole.
const BACK: Duration = Duration::from_mins(2);
/// For what is held and what is on the bus to be counted.
const COUNTED: Duration = Duration::from_mins(5);
/// How long the table has to stay as it is before what is missing there is lost: longer than a counter's message takes to
/// be handed out again.
const QUIET: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// Downloads that a node has neither on the bus nor given up.
const HELD: &str = "cratemill_downloads_held";

pub(super) async fn settle(measured: &Measured, load: &Load, first_day: i32) -> Result<Verdict> {
    let cluster = &measured.cluster;
    timeout(BACK, cluster.ready()).await.context("not everything is back")??;
    cluster.nats.wait_for_replicas(BACK).await?;
    // What a node says that it holds is true once it has counted something again.
    for node in measured.nodes()? {
        let deadline = Instant::now() + BACK;
        while !load.probe(node).await {
            ensure!(Instant::now() < deadline, "{node} answers no downloads");
            sleep(POLL).await;
        }
    }
    let days = first_day..=day::today()?;
    if days.start() != days.end() {
        println!("midnight (UTC) was during the run: the two days are compared together");
    }
    everything_counted(measured).await?;
    verdict(measured, load, &days).await
}

/// Nodes before the stream: what leaves them is there.
async fn everything_counted(measured: &Measured) -> Result<()> {
    let client = measured.cluster.nats.client().await?;
    let stream = jetstream::new(client).get_stream(subjects::DOWNLOADS_STREAM).await?;
    let deadline = Instant::now() + COUNTED;
    loop {
        let mut held = 0.0;
        for node in measured.nodes()? {
            held += held_by(node).await?;
        }
        // What was acknowledged may stay in the stream where its leader was killed, and comes to nobody.
        let consumer = stream.consumer_info(subjects::DOWNLOADS_CONSUMER).await?;
        let waiting = consumer.num_pending + consumer.num_ack_pending as u64;
        if held == 0.0 && waiting == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("after {COUNTED:?} nodes hold {held} downloads, and {waiting} batches are on the bus");
        }
        sleep(POLL).await;
    }
}

async fn held_by(node: SocketAddr) -> Result<f64> {
    let text = reqwest::get(format!("http://{node}/metrics")).await?.text().await?;
    Ok(sum_of(HELD, &text))
}

/// Of all lines of a metric; none of them is 0.
fn sum_of(name: &str, metrics: &str) -> f64 {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let values = lines.filter(|rest| rest.starts_with([' ', '{']));
    values.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// What is missing may still come for a moment; what is counted twice stays so.
async fn verdict(measured: &Measured, load: &Load, days: &RangeInclusive<i32>) -> Result<Verdict> {
    let mut conn = PgConnection::connect(&measured.cluster.postgres.url()).await?;
    let mut last = load.tally.compare(&rows(&mut conn).await?, days);
    let mut changed = Instant::now();
    while last.lost > 0 && changed.elapsed() < QUIET {
        sleep(POLL).await;
        let now = load.tally.compare(&rows(&mut conn).await?, days);
        if now != last {
            (last, changed) = (now, Instant::now());
        }
    }
    Ok(last)
}

async fn rows(conn: &mut PgConnection) -> Result<Vec<Row>> {
    let rows: Vec<(i64, i32, String, i64)> = sqlx::query_as(
        "SELECT artifact_id, day - date '1970-01-01', client, sum(count)::bigint FROM downloads_daily GROUP BY 1, 2, 3",
    )
    .fetch_all(conn)
    .await?;
    let row = |(artifact, day, class, count)| {
        Ok(Row { artifact, day, class, count: u64::try_from(count).context("a count below zero")? })
    };
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_lines() {
        let text = "# TYPE held gauge\nheld 3\nheld{where=\"journal\"} 4\nheld_since 9\n";
        assert!((sum_of("held", text) - 7.0).abs() < f64::EPSILON);
        assert!(sum_of("other", text).abs() < f64::EPSILON);
    }
}

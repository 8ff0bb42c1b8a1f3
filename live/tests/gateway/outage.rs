//! The bus goes away and comes back: viewers stay connected and miss nothing.

use crate::{farm::Farm, proxy::Proxy, viewer::Viewer};
use cratemill_protocol::{JobState, bus::LogBody};
use sqlx::PgPool;

#[sqlx::test(migrations = "../migrations")]
async fn the_bus_is_killed_and_nothing_is_missed(pool: PgPool) {
    let mut farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(1).await;
    let log = format!("job.{job}.log");
    let mut events = Viewer::open(&node, &["queue"]).await;
    let mut logs = Viewer::open(&node, &[&log]).await;
    for round in 0..3 {
        for number in 0..20 {
            farm.queue_event(round * 20 + number).await;
        }
        farm.text(job, 1, usize::try_from(round).unwrap() * 2, "x\n").await;
        farm.nats.kill9().await.unwrap();
        farm.nats.restart().await.unwrap();
    }
    farm.log(job, 1, LogBody::End { state: JobState::Succeeded }).await;
    assert_eq!(events.queue_numbers(60).await, (0..60).collect::<Vec<_>>());
    assert_eq!(logs.log(1, 0).await.0, "x\nx\nx\n");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_was_cut_off_repairs_what_it_missed_before_it_goes_on(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let url = farm.nats.url("live").unwrap();
    let (user, address) = url.rsplit_once('@').unwrap();
    let proxy = Proxy::to(address.to_owned()).await;
    let node = farm.node_with(&[("NATS_URL", &format!("{user}@127.0.0.1:{}", proxy.port))]).await;
    let mut viewer = Viewer::open(&node, &["queue"]).await;
    farm.queue_event(0).await;
    assert_eq!(viewer.queue_numbers(1).await, [0]);
    proxy.cut();
    for number in 1..=500 {
        farm.queue_event(number).await;
    }
    // One that comes while the bus is away waits for it, and so does its replay.
    let mut resumed = Viewer::resume(&node, &["queue"], "0").await;
    proxy.heal();
    assert_eq!(viewer.queue_numbers(500).await, (1..=500).collect::<Vec<_>>());
    assert_eq!(resumed.queue_numbers(501).await, (0..=500).collect::<Vec<_>>());
    node.metric_reaches("cratemill_live_repairs_total{stream=\"EVENTS\"} ", 1.0).await;
}

//! Logs leave a bus of three servers, and what stays outlives the death of them all.

use cratemill_dispatcher::logs::sweep;
use cratemill_protocol::{Attempt, JobId, subjects};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::{data_dir::DataDir, nats::Nats, secrets::Secrets};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Elections take up to ten seconds on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_mins(1);
const LOGS: i64 = 4;
const GONE: JobId = JobId(1);

#[tokio::test]
async fn taking_a_log_off_costs_no_other_log_anything_when_all_servers_die() {
    let data_dir = DataDir::temporary().unwrap();
    let mut secrets = Secrets::open(data_dir.path()).unwrap();
    let mut nats = Nats::start_servers(&data_dir, &mut secrets, 3).await.unwrap();
    let connect =
        async |user: &str| Bus::connect(&nats.url(user).unwrap().parse().unwrap(), user).await.unwrap();
    let (own, api) = (connect("dispatcher").await, connect("api").await);
    streams::ensure(&own, 3, &CancellationToken::new()).await.unwrap();
    for (job, seq) in (1..=LOGS).flat_map(|job| (1..=3).map(move |seq| (job, seq))) {
        let subject = subjects::log(JobId(job), Attempt(1));
        api.store(&subject, &format!("{job}-{seq}"), "text".into(), PATIENCE).await.unwrap();
    }
    let mut stream = own.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    sweep::take_off(&stream, GONE, Attempt(1)).await.unwrap();
    nats.wait_for_replicas(PATIENCE).await.unwrap();

    nats.kill9().await.unwrap();
    nats.restart().await.unwrap();
    nats.wait_for_replicas(PATIENCE).await.unwrap();
    let messages = async {
        loop {
            if let Ok(info) = stream.info().await {
                return info.state.messages;
            }
        }
    };
    let messages = tokio::time::timeout(PATIENCE, messages).await.unwrap();
    assert_eq!(messages, 3 * (LOGS.unsigned_abs() - 1));
}

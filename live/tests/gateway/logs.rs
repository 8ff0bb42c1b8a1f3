//! Logs: from their start, from the bus or the archive or both, attempt after attempt.

use crate::{
    farm::Farm,
    proxy::Proxy,
    viewer::{Viewer, request},
};
use cratemill_protocol::{JobId, JobState, Stage, bus::LogBody};
use cratemill_stack::ports::Port;
use serde_json::json;
use sqlx::PgPool;

const PARTS: [&str; 3] = ["Compiling käse\n", "🦀 wärning: ß\r\n", "\u{1b}[32mFinished\u{1b}[0m\n"];

fn topic(job: JobId) -> String {
    format!("job.{job}.log")
}

async fn publish_parts(farm: &Farm, job: JobId, attempt: i32) -> usize {
    let mut offset = 0;
    for part in PARTS {
        farm.text(job, attempt, offset, part).await;
        offset += part.len();
    }
    offset
}

#[sqlx::test(migrations = "../migrations")]
async fn a_late_viewer_gets_it_from_the_start_and_then_follows(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(1).await;
    let mut early = Viewer::open(&node, &[&topic(job)]).await;
    farm.log(job, 1, LogBody::Stage { stage: Stage::Fetch, offset: 0 }).await;
    let offset = publish_parts(&farm, job, 1).await;
    let mut late = Viewer::open(&node, &[&topic(job)]).await;
    farm.text(job, 1, offset, "the end").await;
    farm.log(job, 1, LogBody::End { state: JobState::Succeeded }).await;
    for viewer in [&mut early, &mut late] {
        let stage = viewer.expect("stage").await;
        assert_eq!(stage, json!({"topic": topic(job), "attempt": 1, "stage": "fetch"}));
        let (text, end) = viewer.log(1, 0).await;
        assert_eq!(text, PARTS.concat() + "the end");
        assert_eq!(end, json!({"topic": topic(job), "attempt": 1, "state": "succeeded", "final": true}));
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn attempts_follow_each_other_from_the_archive_and_the_bus(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(3).await;
    let long: String = "line with ümläuts\n".repeat(20_000);
    farm.text(job, 1, 0, "gone from the bus").await;
    farm.archive(job, 1, &long).await;
    farm.archive(job, 2, "").await;
    publish_parts(&farm, job, 3).await;
    let mut viewer = Viewer::open(&node, &[&topic(job)]).await;
    let (text, end) = viewer.log(1, 0).await;
    assert!(text == long, "{} bytes instead of {}", text.len(), long.len());
    assert_eq!((&end["state"], &end["final"]), (&json!("queued"), &json!(false)));
    assert_eq!(viewer.log(2, 0).await.0, "");
    farm.log(job, 3, LogBody::End { state: JobState::Failed }).await;
    let (text, end) = viewer.log(3, 0).await;
    assert_eq!((text, &end["final"]), (PARTS.concat(), &json!(true)));

    farm.finish(job).await;
    farm.archive(job, 3, &PARTS.concat()).await;
    let mut after = Viewer::resume(&node, &[&topic(job)], "0").await;
    assert_eq!(after.log(1, 0).await.0.len(), long.len());
    assert_eq!(after.log(2, 0).await.0, "");
    let (text, end) = after.log(3, 0).await;
    assert_eq!((text, &end["state"], &end["final"]), (PARTS.concat(), &json!("succeeded"), &json!(true)));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_viewer_that_comes_back_after_the_archive_took_it_misses_and_repeats_nothing(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (node, other) = (farm.node().await, farm.node().await);
    let job = farm.job(1).await;
    let mut viewer = Viewer::open(&node, &[&topic(job)]).await;
    farm.text(job, 1, 0, PARTS[0]).await;
    farm.text(job, 1, PARTS[0].len(), PARTS[1]).await;
    viewer.expect("log").await;
    let in_the_middle = viewer.last_id.clone();
    viewer.expect("log").await;
    farm.log(job, 1, LogBody::End { state: JobState::Succeeded }).await;
    viewer.expect("end").await;
    let at_the_end = viewer.last_id.clone();
    farm.finish(job).await;
    farm.archive(job, 1, &PARTS[..2].concat()).await;

    let mut resumed = Viewer::resume(&other, &[&topic(job)], &in_the_middle).await;
    let (text, end) = resumed.log(1, PARTS[0].len()).await;
    assert_eq!((text.as_str(), &end["final"]), (PARTS[1], &json!(true)));
    let mut ended = Viewer::resume(&other, &[&topic(job), "queue"], &at_the_end).await;
    farm.queue_event(1).await;
    assert_eq!(ended.queue_numbers(1).await, [1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn what_a_node_missed_and_the_archive_took_comes_from_there(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let url = farm.nats.url("live").unwrap();
    let (user, address) = url.rsplit_once('@').unwrap();
    let proxy = Proxy::to(address.to_owned()).await;
    let url = format!("{user}@127.0.0.1:{}", proxy.port);
    let node = farm.node_with(&[("NATS_URL", &url)]).await;
    let job = farm.job(2).await;
    let mut viewer = Viewer::open(&node, &[&topic(job)]).await;
    farm.text(job, 1, 0, PARTS[0]).await;
    viewer.expect("log").await;

    proxy.cut();
    farm.text(job, 1, PARTS[0].len(), PARTS[1]).await;
    farm.log(job, 1, LogBody::End { state: JobState::Queued }).await;
    farm.archive(job, 1, &PARTS[..2].concat()).await;
    publish_parts(&farm, job, 2).await;
    farm.archive(job, 2, &PARTS.concat()).await;
    proxy.heal();
    let (text, end) = viewer.log(1, PARTS[0].len()).await;
    assert_eq!((text.as_str(), &end["final"]), (PARTS[1], &json!(false)));
    assert_eq!(viewer.log(2, 0).await.0, PARTS.concat());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_log_that_the_archive_lost_is_said(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(2).await;
    farm.archive(job, 1, "text").await;
    farm.lose_archived(job, 1).await;
    publish_parts(&farm, job, 2).await;
    let mut viewer = Viewer::open(&node, &[&topic(job)]).await;
    assert_eq!(viewer.expect("reset").await["reason"], "lost");
    assert_eq!(viewer.expect("end").await["attempt"], 1);
    assert_eq!(viewer.expect("log").await["text"], PARTS[0]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_queued_job_waits_and_an_unknown_one_is_not_found(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let job = farm.job(0).await;
    let mut viewer = Viewer::open(&node, &[&topic(job)]).await;
    publish_parts(&farm, job, 1).await;
    assert_eq!(viewer.expect("log").await["text"], PARTS[0]);
    let answer = request(&node, &["job.999999999.log", "queue"]).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert!(answer.text().await.unwrap().contains("999999999"));
}

#[sqlx::test(migrations = "../migrations")]
async fn without_the_database_events_go_on_and_logs_have_to_wait(pool: PgPool) {
    let farm = Farm::start(pool).await;
    // Reserved until the end, and listened on by nobody: the connection is refused at once.
    let nobody = Port::reserve().unwrap();
    let url = format!("postgres://u@{}/d", nobody.address());
    let node = farm.node_with(&[("DATABASE_URL", &url)]).await;
    let mut viewer = Viewer::open(&node, &["queue"]).await;
    farm.queue_event(1).await;
    assert_eq!(viewer.queue_numbers(1).await, [1]);
    let answer = request(&node, &["job.1.log"]).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
}

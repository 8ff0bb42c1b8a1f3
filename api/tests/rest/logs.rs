use crate::support::{Node, Servers, add_builder, add_crate, finish, running_job};
use cratemill_protocol::{
    Attempt, JobId, JobState, Stage,
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_service::bus::Bus;
use cratemill_store::{
    PgPool, attempts,
    queue::{End, Held},
};
use flate2::{Compression, write::GzEncoder};
use http_body_util::BodyExt;
use std::{io::Write, time::Duration};
use tower::ServiceExt;

const LOG: &str = "/api/v1/jobs/1/log";

async fn running(pool: &PgPool) -> Held {
    add_crate(pool, "demo", &[("1.0.0", false)]).await;
    let (builder, _) = add_builder(pool, "ada").await;
    running_job(pool, "demo", "1.0.0", builder).await
}

async fn log(bus: &Bus, seq: u64, body: LogBody) {
    let message = LogMessage { job: JobId(1), attempt: Attempt(1), seq, at_ms: 0, body };
    let (subject, id) = (subjects::log(JobId(1), Attempt(1)), format!("l-{seq}"));
    bus.store(&subject, &id, bus::encode(&message).into(), Duration::from_secs(5)).await.unwrap();
}

/// A log of 40 chunks, some sent twice and some cut elsewhere the second time, among stages; what it says.
async fn write_log(bus: &Bus) -> String {
    let (mut text, mut seq) = (String::new(), 1);
    log(bus, seq, LogBody::Stage { stage: Stage::Fetch, offset: 0 }).await;
    for number in 0..40 {
        let line = format!("line {number}: später\n");
        seq += 1;
        log(bus, seq, LogBody::Text { offset: text.len() as u64, text: line.clone() }).await;
        if number % 7 == 3 {
            let from = text.len().saturating_sub(10);
            let resent = format!("{}{line}", String::from_utf8_lossy(&text.as_bytes()[from..]));
            let offset = text.len() + line.len() - resent.len();
            seq += 1;
            log(bus, seq, LogBody::Text { offset: offset as u64, text: resent }).await;
        }
        text.push_str(&line);
    }
    text
}

/// What the dispatcher does when an attempt has ended.
async fn archive(node: &Node, held: &Held, text: &str) {
    finish(&node.app.pool, held, End::Succeeded).await;
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text.as_bytes()).unwrap();
    node.app.objects.put("logs/1/1.gz", packed.finish().unwrap().into(), "application/gzip").await.unwrap();
    let mut conn = node.app.pool.acquire().await.unwrap();
    let bytes = i64::try_from(text.len()).unwrap();
    attempts::archived(&mut conn, JobId(1), Attempt(1), "logs/1/1.gz", bytes, 0).await.unwrap();
}

async fn purge(servers: &Servers) {
    let admin = servers.bus("admin").await;
    let stream = admin.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    stream.purge().filter(subjects::log(JobId(1), Attempt(1))).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_log_is_the_same_before_and_after_it_is_archived(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    let held = running(&pool).await;
    assert_eq!(node.get(LOG).await.text(), "");
    let text = write_log(&node.app.bus).await;
    let before = node.get(LOG).await;
    assert_eq!((before.status, before.header("content-type")), (200, "text/plain; charset=utf-8"));
    assert_eq!(before.text(), text);
    log(&node.app.bus, 999, LogBody::End { state: JobState::Succeeded }).await;
    assert_eq!(node.get("/api/v1/jobs/1/log?attempt=1").await.text(), text);

    archive(&node, &held, &text).await;
    assert_eq!(node.get(LOG).await.text(), text);
    purge(&servers).await;
    let after = node.get(LOG).await;
    assert_eq!((after.text(), after.header("content-encoding")), (text.clone(), ""));
    let packed = node.ask("GET", LOG, &[("accept-encoding", "br, gzip")], None).await;
    assert_eq!((packed.header("content-encoding"), packed.header("vary")), ("gzip", "accept-encoding"));
    let mut unpacked = flate2::write::GzDecoder::new(Vec::new());
    unpacked.write_all(&packed.body).unwrap();
    assert_eq!(unpacked.finish().unwrap(), text.as_bytes());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_log_that_is_archived_while_it_is_read_loses_nothing(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    let held = running(&pool).await;
    let text = write_log(&node.app.bus).await;
    let request = axum::http::Request::get(LOG).body(axum::body::Body::empty()).unwrap();
    let mut body = node.router().oneshot(request).await.unwrap().into_body();
    let mut read = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    assert!(read.len() < text.len());
    archive(&node, &held, &text).await;
    purge(&servers).await;
    read.extend_from_slice(&body.collect().await.unwrap().to_bytes());
    assert_eq!(String::from_utf8(read).unwrap(), text);
}

#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_read_says_why(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    node.get(LOG).await.problem(404);
    running(&pool).await;
    assert_eq!(node.get("/api/v1/jobs/1/log?attempt=2").await.problem(404).as_deref(), Some("attempt"));
    node.get("/api/v1/jobs/1/log?attempt=x").await.problem(400);
    node.get("/api/v1/jobs/1/log?attempt=1&attempt=1").await.problem(400);
    let away = node.get(LOG).await;
    away.problem(503);
    assert_eq!(away.header("retry-after"), "2");
}

//! Damage to logs, in the object store and on the bus, and to events.

use super::world::World;
use cratemill_protocol::{
    Attempt, JobId, JobState,
    bus::{self, DomainEvent, EventMessage, LogBody, LogMessage},
    subjects,
};
use cratemill_service::clock;
use cratemill_store::PgPool;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn event(job: JobId, seq: u64, offset: u64, text: &str) -> LogMessage {
    let body = LogBody::Text { offset, text: text.into() };
    LogMessage { job, attempt: Attempt(1), seq, at_ms: clock::now_ms(), body }
}

#[sqlx::test(migrations = "../migrations")]
async fn archived_logs_that_are_not_whole_are_found(pool: PgPool) {
    let world = World::at_rest(pool).await;
    assert_eq!(world.found(&["--at-rest"]).await, [""; 0], "{}", world.audit(&["--at-rest"]).await);
    for sql in [
        "UPDATE finished_jobs SET log_bytes = log_bytes + 1 WHERE job_id = GOOD",
        "UPDATE finished_jobs SET log_missing = 2 WHERE job_id = GOOD",
        "UPDATE attempts SET log_object = 'elsewhere' WHERE job_id = FAILED",
    ] {
        world.damage("archived-logs", sql).await;
    }
    let objects = &world.store.objects;
    let object: String = sqlx::query_scalar("SELECT log_object FROM finished_jobs WHERE job_id = $1")
        .bind(world.good.0)
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let good = objects.get_bytes(&object, 1 << 20).await.unwrap();
    for bytes in [good.slice(..good.len() - 6), "no gzip".into()] {
        objects.put(&object, bytes, "application/gzip").await.unwrap();
        assert_eq!(world.found(&[]).await, ["archived-logs"]);
    }
    objects.put(&object, good, "application/gzip").await.unwrap();
    assert_eq!(world.found(&[]).await, [""; 0]);
}

#[sqlx::test(migrations = "../migrations")]
async fn logs_on_the_bus_with_gaps_and_late_writes_are_found(pool: PgPool) {
    let world = World::live(pool).await;
    let (running, good) = (world.running.unwrap(), world.good);
    let stream = world.admin.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    for (check, message) in [
        // Two events with twelve bytes stand there.
        ("bus-logs", event(running, 4, 12, "x")),
        ("bus-logs", event(running, 2, 12, "x")),
        ("bus-logs", event(running, 3, 13, "x")),
        ("bus-logs", event(running, 3, 11, "x")),
        ("bus-logs", event(JobId(999), 1, 0, "x")),
        ("late-logs", event(good, 3, 8, "x")),
    ] {
        world.publish(&message, &uuid::Uuid::new_v4().to_string()).await;
        let report = world.audit(&[]).await;
        let names: Vec<_> = report.findings().map(|check| check.name).collect();
        assert_eq!(names, [check], "{message:?}\n{report}");
        let last = stream.get_info().await.unwrap().state.last_sequence;
        stream.delete_message(last).await.unwrap();
    }
    let rubbish =
        world.api.store(&subjects::log(running, Attempt(1)), "r", "x".into(), PATIENCE).await.unwrap();
    assert_eq!(world.found(&[]).await, ["bus-logs"]);
    stream.delete_message(rubbish.sequence).await.unwrap();
    world.publish(&event(running, 3, 12, "more\n"), "m").await;
    assert_eq!(world.found(&[]).await, [""; 0]);
}

#[sqlx::test(migrations = "../migrations")]
async fn ends_that_are_told_twice_or_not_at_all_are_found(pool: PgPool) {
    let world = World::at_rest(pool).await;
    let stream = world.admin.jetstream.get_stream(subjects::EVENTS_STREAM).await.unwrap();
    let subject = subjects::job_event(&"demo".parse().unwrap(), world.failed);
    let last = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    let told: EventMessage = bus::decode(&last.payload).unwrap();
    let DomainEvent::Job(changed) = &told.event else { panic!("{told:?}") };
    assert_eq!(changed.state, JobState::Failed);

    let again = world.api.store(&subject, "again", last.payload.clone(), PATIENCE).await.unwrap();
    assert_eq!(world.found(&[]).await, ["final-events"]);
    for sequence in [last.sequence, again.sequence] {
        stream.delete_message(sequence).await.unwrap();
    }
    // Well after the oldest event, as far as clocks can tell.
    sqlx::query("UPDATE finished_jobs SET finished_at = now() + interval '1 minute' WHERE job_id = $1")
        .bind(world.failed.0)
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.found(&[]).await, [""; 0], "it may be on its way");
    assert_eq!(world.found(&["--at-rest"]).await, ["final-events"]);
}

//! Events: who gets which, from where on, at any node.

use crate::{farm::Farm, viewer::Viewer};
use cratemill_protocol::{
    BuilderId, CrateName, VersionId,
    bus::{BuilderState, DomainEvent, VersionChange, VersionChanged},
    subjects,
};
use sqlx::PgPool;

#[sqlx::test(migrations = "../migrations")]
async fn a_new_viewer_gets_what_is_new_and_resumes_at_another_node(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (one, other) = (farm.node().await, farm.node().await);
    farm.queue_event(1).await;
    // Now the node knows of it.
    assert_eq!(Viewer::resume(&one, &["queue"], "0").await.queue_numbers(1).await, [1]);
    let mut viewer = Viewer::open(&one, &["queue"]).await;
    let first_id = viewer.last_id.clone();
    for number in 2..5 {
        farm.queue_event(number).await;
    }
    assert_eq!(viewer.queue_numbers(3).await, [2, 3, 4]);
    let last_id = viewer.last_id.clone();
    drop(viewer);
    farm.queue_event(5).await;

    let mut resumed = Viewer::resume(&other, &["queue"], &last_id).await;
    farm.queue_event(6).await;
    assert_eq!(resumed.queue_numbers(2).await, [5, 6]);
    let mut from_the_first = Viewer::resume(&other, &["queue"], &first_id).await;
    assert_eq!(from_the_first.queue_numbers(5).await, [2, 3, 4, 5, 6]);
    let everything = Viewer::resume(&one, &["queue"], "0").await.queue_numbers(6).await;
    assert_eq!(everything, [1, 2, 3, 4, 5, 6]);
}

#[sqlx::test(migrations = "../migrations")]
async fn each_topic_has_its_events_once_live_and_replayed(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let topics = ["job.7", "crate.hexyl", "builds"];
    let mut live = Viewer::open(&node, &topics).await;
    let mut builders = Viewer::open(&node, &["builders"]).await;
    farm.job_event("hexyl", 7, 1).await;
    farm.job_event("bat", 8, 2).await;
    let krate = CrateName::parse("hexyl").unwrap();
    let (version, id) = ("1.0.0".into(), VersionId(3));
    let event = VersionChanged { krate: krate.clone(), version, id, change: VersionChange::Published };
    farm.event(&subjects::version_event(&krate, id), DomainEvent::Version(event)).await;
    let (builder, name, state) = (BuilderId(4), "b".into(), BuilderState::Connected);
    farm.event(&subjects::builder_event(builder), DomainEvent::Builder { builder, name, state }).await;
    farm.job_event("hexyl", 7, 3).await;
    let mut replayed = Viewer::resume(&node, &topics, "0").await;
    for viewer in [&mut live, &mut replayed] {
        assert_eq!(viewer.expect("job").await["message"], "1");
        assert_eq!(viewer.expect("job").await["job"], 8);
        assert_eq!(viewer.expect("version").await["change"], "published");
        assert_eq!(viewer.expect("job").await["message"], "3");
    }
    assert_eq!(builders.expect("builder").await["state"], "connected");
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_gone_is_said(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    for number in 1..=10 {
        farm.queue_event(number).await;
    }
    // Now the node knows of all, and has them in no ring that is asked for below.
    assert_eq!(Viewer::resume(&node, &["queue", "builders"], "0").await.queue_numbers(10).await.len(), 10);
    let stream = farm.bus.jetstream.get_stream(subjects::EVENTS_STREAM).await.unwrap();
    stream.purge().sequence(6).await.unwrap();
    let mut expired = Viewer::resume(&node, &["queue"], "2").await;
    assert_eq!(expired.expect("reset").await, serde_json::json!({"topic": "queue", "reason": "expired"}));
    assert_eq!(expired.queue_numbers(5).await, [6, 7, 8, 9, 10]);
    let mut kept = Viewer::resume(&node, &["queue"], "5").await;
    assert_eq!(kept.queue_numbers(5).await, [6, 7, 8, 9, 10]);

    for (id, reason) in [("999999", "unknown_id"), ("tomorrow", "unreadable_id"), ("1-x", "unreadable_id")] {
        let mut viewer = Viewer::resume(&node, &["queue", "builds"], id).await;
        for topic in ["builds", "queue"] {
            let reset = viewer.expect("reset").await;
            assert_eq!(reset, serde_json::json!({"topic": topic, "reason": reason}), "{id}");
        }
        farm.queue_event(11).await;
        assert_eq!(viewer.queue_numbers(1).await, [11], "{id}");
    }
}

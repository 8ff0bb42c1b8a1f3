//! One crate refreshed: what becomes of what a registry says, and of what it fails to say.

use crate::peer::{Peer, line};
use cratemill_dispatcher::registry::{
    Error,
    answer::Refreshes,
    refresh::{RefreshError, refresh},
};
use cratemill_protocol::{CrateName, JobState, Kind, Priority, Sha256Hex, bus::RefreshReply};
use cratemill_store::{PgPool, crates, jobs, versions};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

const DEMO: &str = "de/mo/demo";

fn demo() -> CrateName {
    CrateName::parse("demo").unwrap()
}

fn lines(lines: &[(&str, bool)]) -> String {
    lines.iter().map(|(version, yanked)| line("demo", version, *yanked, version) + "\n").collect()
}

/// (version, state) of every job, the oldest first.
async fn queued(pool: &PgPool) -> Vec<(String, JobState)> {
    let mut conn = pool.acquire().await.unwrap();
    let mut jobs = jobs::page(&mut conn, &jobs::Filter::default(), None, 100).await.unwrap();
    jobs.reverse();
    assert!(jobs.iter().all(|job| (job.kind, job.priority) == (Kind::Metadata, Priority::NewRelease)));
    jobs.into_iter().map(|job| (job.version, job.state)).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn news_become_jobs_and_yanks_withdraw_them(pool: PgPool) {
    let (peer, queued_as) = (Peer::start().await, |version: &str, state| (version.to_owned(), state));
    let registry = peer.registry(None);
    // The history of a new crate is not news.
    peer.body(DEMO, lines(&[("0.9.0", false), ("1.0.0", false), ("2.0.0-rc.1", false)]) + "not json\n");
    refresh(&pool, &registry, &demo()).await.unwrap();
    assert_eq!(queued(&pool).await, [queued_as("1.0.0", JobState::Queued)]);
    refresh(&pool, &registry, &demo()).await.unwrap();
    assert_eq!(peer.answers(DEMO), [200, 304]);

    let all = [("0.9.0", false), ("1.0.0", true), ("1.1.0", true), ("1.2.0", false)];
    peer.body(DEMO, lines(&all));
    refresh(&pool, &registry, &demo()).await.unwrap();
    let expected = [queued_as("1.0.0", JobState::Cancelled), queued_as("1.2.0", JobState::Queued)];
    assert_eq!(queued(&pool).await, expected);
    assert_eq!(peer.answers(DEMO), [200, 304, 200]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_changed_checksum_is_ignored(pool: PgPool) {
    let (peer, name) = (Peer::start().await, demo());
    let registry = peer.registry(None);
    peer.body(DEMO, line("demo", "1.0.0", false, "first"));
    refresh(&pool, &registry, &name).await.unwrap();
    peer.body(DEMO, line("demo", "1.0.0", false, "second"));
    refresh(&pool, &registry, &name).await.unwrap();
    let version = versions::find(&mut pool.acquire().await.unwrap(), &name, "1.0.0").await.unwrap().unwrap();
    assert_eq!(version.sha256, Sha256Hex::of(b"first"));
    assert_eq!(queued(&pool).await.len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_registrys_spelling_counts(pool: PgPool) {
    let peer = Peer::start().await;
    let registry = peer.registry(None);
    peer.body("de/mo/demo-tool", line("Demo-Tool", "1.0.0", false, ""));
    refresh(&pool, &registry, &CrateName::parse("demo-tool").unwrap()).await.unwrap();
    // Known by now, so that the index is asked for what it knows.
    refresh(&pool, &registry, &CrateName::parse("DEMO_TOOL").unwrap()).await.unwrap();
    assert_eq!(peer.answers("de/mo/demo-tool"), [200, 304]);
}

#[sqlx::test(migrations = "../migrations")]
async fn failures_are_told_apart_and_change_nothing(pool: PgPool) {
    let peer = Peer::start().await;
    let registry = peer.registry(None);
    let error = async |status: Option<u16>| {
        if let Some(status) = status {
            peer.status(DEMO, status);
        }
        match refresh(&pool, &registry, &demo()).await {
            Err(RefreshError::Registry(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    for status in [None, Some(404), Some(410), Some(451)] {
        assert_eq!(error(status).await, Error::NotFound);
    }
    for status in [429, 503] {
        assert_eq!(error(Some(status)).await, Error::Busy(Duration::from_secs(7)));
    }
    assert!(matches!(error(Some(500)).await, Error::Unavailable(_)));
    assert!(crates::find(&mut pool.acquire().await.unwrap(), &demo()).await.unwrap().is_none());

    // Not one good line.
    peer.body("ot/he/other", "{}\n");
    let other = refresh(&pool, &registry, &CrateName::parse("other").unwrap()).await;
    assert!(matches!(other, Err(RefreshError::Registry(Error::NotFound))));
    // More than anybody would publish.
    peer.body("hu/ge/huge", "x".repeat(33 << 20));
    let huge = refresh(&pool, &registry, &CrateName::parse("huge").unwrap()).await;
    assert!(matches!(huge, Err(RefreshError::Registry(Error::Unavailable(why))) if why.contains("longer")));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_private_registry_gets_its_token(pool: PgPool) {
    let peer = Peer::start().await;
    peer.wants_token("hush");
    peer.body(DEMO, lines(&[("1.0.0", false)]));
    for (token, good) in [(None, false), (Some("wrong"), false), (Some("hush"), true)] {
        let result = refresh(&pool, &peer.registry(token), &demo()).await;
        assert_eq!(result.is_ok(), good, "{token:?}: {result:?}");
    }
    assert!(peer.registry(Some("hush")).config().await.unwrap().auth_required);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_registry_that_wants_no_token_gets_none(pool: PgPool) {
    let peer = Peer::start().await;
    peer.body(DEMO, lines(&[("1.0.0", false)]));
    refresh(&pool, &peer.registry(Some("hush")), &demo()).await.unwrap();
    assert_eq!(peer.answers("config.json"), [200]);
}

/// Assignment needs the configuration for every round.
#[tokio::test]
async fn a_configuration_that_was_read_is_there_while_the_registry_hangs() {
    let peer = Peer::start().await;
    let registry = peer.registry(None);
    registry.config().await.unwrap();
    peer.hang("config.json");
    let asked = async {
        peer.hangs.notified().await;
        registry.config().await
    };
    tokio::select! {
        renewed = registry.renew_config() => panic!("nobody answers: {renewed:?}"),
        config = asked => assert!(!config.unwrap().auth_required),
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn requests_for_one_crate_share_one_look(pool: PgPool) {
    let peer = Peer::start().await;
    peer.gate.forget_permits(Semaphore::MAX_PERMITS);
    peer.body(DEMO, lines(&[("1.0.0", false)]));
    let refreshes = Refreshes::new(pool, Arc::new(peer.registry(None)));
    let (krate, other) = (demo(), CrateName::parse("DEMO").unwrap());
    // The look ends when there is a permit, which comes after both have asked.
    let (a, b, ()) = tokio::join!(refreshes.refresh(&krate), refreshes.refresh(&other), async {
        peer.gate.add_permits(1);
    });
    assert_eq!((a, b), (RefreshReply::Fresh, RefreshReply::Fresh));
    assert_eq!(peer.answers(DEMO), [200]);
    // It is over: the next request looks again.
    peer.gate.add_permits(1);
    refreshes.refresh(&krate).await;
    assert_eq!(peer.answers(DEMO), [200, 304]);
}

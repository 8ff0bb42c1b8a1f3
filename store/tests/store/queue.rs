//! The queue: what is queued once, in which order, and who gets it.

use crate::support::{ARM, LINUX, builder, job, krate, lease, target, version};
use cratemill_protocol::{Attempt, JobId, JobState, Kind, Priority, bus::JobChanged};
use cratemill_store::{
    PgPool, attempts,
    database::{self, Channel},
    jobs,
    queue::{self, Enqueued, NewJob},
};
use std::collections::HashSet;
use time::{Duration, OffsetDateTime};

#[sqlx::test(migrations = "../migrations")]
async fn the_same_thing_is_queued_once_and_at_the_higher_priority(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let version = version(&mut tx, "a").await;
    let low = NewJob { priority: Priority::Backfill, ..job(version) };
    let Enqueued::New(id) = queue::enqueue(&mut tx, &low).await.unwrap() else { panic!("it is new") };
    let high = NewJob { priority: Priority::OnDemand, ..job(version) };
    assert_eq!(queue::enqueue(&mut tx, &high).await.unwrap(), Enqueued::Active(id));
    assert_eq!(queue::enqueue(&mut tx, &low).await.unwrap(), Enqueued::Active(id));
    assert_eq!(jobs::find(&mut tx, id).await.unwrap().unwrap().priority, Priority::OnDemand);
    // Another target or variant is another job.
    let other = NewJob { target: target(ARM), ..job(version) };
    assert!(matches!(queue::enqueue(&mut tx, &other).await.unwrap(), Enqueued::New(_)));
    let other = NewJob { features: "no-default".parse().unwrap(), ..job(version) };
    assert!(matches!(queue::enqueue(&mut tx, &other).await.unwrap(), Enqueued::New(_)));
    assert_eq!(queue::lengths(&mut tx).await.unwrap(), (3, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn two_who_queue_the_same_at_once_get_one_job(pool: PgPool) {
    let version = version(&mut pool.acquire().await.unwrap(), "a").await;
    let enqueue = async || {
        let mut tx = pool.begin().await.unwrap();
        let enqueued = queue::enqueue(&mut tx, &job(version)).await.unwrap();
        tx.commit().await.unwrap();
        enqueued
    };
    let (a, b) = tokio::join!(enqueue(), enqueue());
    assert_eq!(a.id(), b.id());
    assert!(matches!(
        (a, b),
        (Enqueued::New(_), Enqueued::Active(_)) | (Enqueued::Active(_), Enqueued::New(_))
    ));
}

#[sqlx::test(migrations = "../migrations")]
async fn the_order_is_priority_then_turn(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let mut ids = Vec::new();
    let now = OffsetDateTime::now_utc();
    for (name, priority, ago_s) in [
        ("late", Priority::NewRelease, 10),
        ("early", Priority::NewRelease, 20),
        ("urgent", Priority::OnDemand, 5),
        ("future", Priority::OnDemand, -3_600),
    ] {
        let version = version(&mut tx, name).await;
        let new = NewJob { priority, run_at: Some(now - Duration::seconds(ago_s)), ..job(version) };
        ids.push(queue::enqueue(&mut tx, &new).await.unwrap().id());
    }
    let candidates = queue::candidates(&mut tx, &[LINUX.into()], 10).await.unwrap();
    let order: Vec<JobId> = candidates.iter().map(|candidate| candidate.id).collect();
    assert_eq!(order, [ids[2], ids[0], ids[1]], "whoever came first, whatever it asked for");
    let candidate = &candidates[0];
    assert_eq!(
        (&*candidate.krate, candidate.version.as_str(), candidate.attempt),
        ("urgent", "1.0.0", Attempt(0))
    );
    assert_eq!(queue::candidates(&mut tx, &[ARM.into()], 10).await.unwrap().len(), 0);
    assert_eq!(jobs::queue_position(&mut tx, ids[0]).await.unwrap(), Some(2));
    assert_eq!(jobs::queue_position(&mut tx, ids[3]).await.unwrap(), Some(4), "it is not due");
    let due = queue::next_due(&mut tx).await.unwrap().expect("one is due later");
    assert!(due > now + Duration::minutes(50));
}

/// A crate with many jobs does not keep the others waiting, at the same priority.
#[sqlx::test(migrations = "../migrations")]
async fn crates_take_turns(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let big = version(&mut tx, "big").await;
    let small = version(&mut tx, "small").await;
    let ago = |s| Some(OffsetDateTime::now_utc() - Duration::seconds(s));
    let mut ids = Vec::new();
    for (version, kind, priority, ago_s) in [
        (big, Kind::Tarball, Priority::NewRelease, 60),
        (big, Kind::Debian, Priority::NewRelease, 50),
        (big, Kind::Rustdoc, Priority::NewRelease, 40),
        (small, Kind::Tarball, Priority::NewRelease, 30),
        (small, Kind::Debian, Priority::NewRelease, 20),
        (small, Kind::Rustdoc, Priority::Backfill, 90),
        (big, Kind::Coverage, Priority::OnDemand, 10),
    ] {
        let new = NewJob { kind, priority, run_at: ago(ago_s), ..job(version) };
        ids.push(queue::enqueue(&mut tx, &new).await.unwrap().id());
    }
    let candidates = queue::candidates(&mut tx, &[LINUX.into()], 10).await.unwrap();
    let order: Vec<JobId> = candidates.iter().map(|candidate| candidate.id).collect();
    assert_eq!(order, [6, 0, 3, 1, 4, 2, 5].map(|n: usize| ids[n]));
}

/// However long one crate's queue is, a job of another is served next.
#[sqlx::test(migrations = "../migrations")]
async fn a_long_queue_of_one_crate_delays_another_by_one_turn(pool: PgPool) {
    const JOBS: usize = 5_000;
    let mut tx = pool.begin().await.unwrap();
    let big = version(&mut tx, "big").await;
    let on_demand = NewJob { priority: Priority::OnDemand, ..job(big) };
    let many: Vec<_> = (0..JOBS)
        .map(|n| NewJob { features: format!("default,f{n}").parse().unwrap(), ..on_demand.clone() })
        .collect();
    assert_eq!(queue::enqueue_all(&mut tx, &many).await.unwrap().len(), JOBS);
    let builder = builder(&mut tx, "b", LINUX).await;
    // Some of them are served before the other comes.
    for _ in 0..3 {
        let next = queue::candidates(&mut tx, &[LINUX.into()], 300).await.unwrap();
        let pairs: Vec<_> = next.iter().map(|job| (job, builder)).collect();
        assert_eq!(queue::assign(&mut tx, &pairs, 60).await.unwrap().len(), 300);
    }
    let other = version(&mut tx, "other").await;
    let single = NewJob { priority: Priority::OnDemand, ..job(other) };
    let single = queue::enqueue(&mut tx, &single).await.unwrap().id();
    assert_eq!(jobs::queue_position(&mut tx, single).await.unwrap(), Some(2));
    let next = queue::candidates(&mut tx, &[LINUX.into()], 2).await.unwrap();
    assert!(next.iter().any(|job| job.id == single));
    // A second one of it comes after one of the big crate.
    let second = NewJob { kind: Kind::Debian, version: other, ..on_demand };
    let second = queue::enqueue(&mut tx, &second).await.unwrap().id();
    assert_eq!(jobs::queue_position(&mut tx, second).await.unwrap(), Some(4));
}

/// Jobs for one target do not keep those for another, or for none, waiting: lines are served in turn.
#[sqlx::test(migrations = "../migrations")]
async fn lines_are_served_in_turn(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let big = version(&mut tx, "big").await;
    let many: Vec<_> =
        (0..50).map(|n| NewJob { features: format!("default,f{n}").parse().unwrap(), ..job(big) }).collect();
    queue::enqueue_all(&mut tx, &many).await.unwrap();
    let small = version(&mut tx, "small").await;
    for target in [target(ARM), target("any")] {
        queue::enqueue(&mut tx, &NewJob { target, ..job(small) }).await.unwrap();
    }
    let next = queue::candidates(&mut tx, &[LINUX.into(), ARM.into()], 3).await.unwrap();
    let mut targets: Vec<_> = next.iter().map(|job| job.target.to_string()).collect();
    targets.sort();
    assert_eq!(targets, [ARM, "any", LINUX]);
}

/// Two that look at the same time see the same job; the first to lease it has it.
#[sqlx::test(migrations = "../migrations")]
async fn a_job_is_leased_to_one_at_a_time(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    for name in ["a", "b", "c"] {
        let version = version(&mut conn, name).await;
        queue::enqueue(&mut conn, &job(version)).await.unwrap();
    }
    let builder = builder(&mut conn, "b", LINUX).await;
    let first = queue::candidates(&mut conn, &[LINUX.into()], 2).await.unwrap();
    let second = queue::candidates(&mut conn, &[LINUX.into()], 3).await.unwrap();
    let pairs = |jobs: &'static [queue::Candidate]| jobs.iter().map(|job| (job, builder)).collect::<Vec<_>>();
    let (first, second) = (&*first.leak(), &*second.leak());
    assert_eq!(queue::assign(&mut conn, &pairs(first), 60).await.unwrap().len(), 2);
    let leased = queue::assign(&mut conn, &pairs(second), 60).await.unwrap();
    assert_eq!(leased, HashSet::from([second[2].id]), "the others are somebody's");
    // A candidate that was cancelled meanwhile, or came back with another attempt, is not what was looked at.
    assert!(queue::assign(&mut conn, &pairs(first), 60).await.unwrap().is_empty());
}

/// What is queued while a builder has it, or comes back while it is queued, is one job all the same.
#[sqlx::test(migrations = "../migrations")]
async fn what_a_builder_has_is_not_queued_again(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let running = crate::support::running(&mut tx, "a").await;
    let again = job(running.version);
    assert_eq!(queue::enqueue(&mut tx, &again).await.unwrap(), Enqueued::Active(running.job));
    let other = NewJob { kind: Kind::Debian, ..again.clone() };
    assert_eq!(queue::enqueue_all(&mut tx, &[again, other.clone(), other]).await.unwrap().len(), 1);
    assert_eq!(queue::lengths(&mut tx).await.unwrap(), (1, 1));
    let listed = jobs::page(&mut tx, &jobs::Filter::default(), None, 10).await.unwrap();
    assert_eq!(listed.len(), 2, "no job that nobody asked for");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_of_dispatchers_leases_each_job_once(pool: PgPool) {
    const JOBS: usize = 40;
    let mut conn = pool.acquire().await.unwrap();
    for n in 0..JOBS {
        let version = version(&mut conn, &format!("a{n}")).await;
        queue::enqueue(&mut conn, &job(version)).await.unwrap();
    }
    let builder = builder(&mut conn, "b", LINUX).await;
    let dispatchers: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut leased = Vec::new();
                loop {
                    let mut tx = pool.begin().await.unwrap();
                    let jobs = queue::candidates(&mut tx, &[LINUX.into()], 3).await.unwrap();
                    let pairs: Vec<_> = jobs.iter().map(|job| (job, builder)).collect();
                    if pairs.is_empty() {
                        return leased;
                    }
                    let got = queue::assign(&mut tx, &pairs, 60).await.unwrap();
                    tx.commit().await.unwrap();
                    leased.extend(got);
                }
            })
        })
        .collect();
    let mut leased = Vec::new();
    for dispatcher in dispatchers {
        leased.extend(dispatcher.await.unwrap());
    }
    assert_eq!(leased.len(), JOBS);
    assert_eq!(leased.iter().collect::<HashSet<_>>().len(), JOBS);
    for id in leased {
        assert_eq!(attempts::of_job(&mut conn, id).await.unwrap().len(), 1);
    }
    assert_eq!(queue::lengths(&mut conn).await.unwrap(), (0, JOBS as u64));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_withdrawn_version_leaves_the_queue_but_not_a_builder(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let version = version(&mut tx, "a").await;
    let builder = builder(&mut tx, "b", LINUX).await;
    let leased = queue::enqueue(&mut tx, &job(version)).await.unwrap().id();
    lease(&mut tx, builder, 60).await;
    let queued = queue::enqueue(&mut tx, &NewJob { target: target(ARM), ..job(version) }).await.unwrap().id();
    assert_eq!(queue::withdraw(&mut tx, version).await.unwrap(), [queued]);
    assert_eq!(jobs::find(&mut tx, leased).await.unwrap().unwrap().state, JobState::Assigned);
    assert_eq!(jobs::find(&mut tx, queued).await.unwrap().unwrap().state, JobState::Cancelled);
    assert!(queue::withdraw(&mut tx, version).await.unwrap().is_empty());
}

#[sqlx::test(migrations = "../migrations")]
async fn lists_are_filtered_and_paged(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let version = version(&mut tx, name).await;
        ids.push(queue::enqueue(&mut tx, &job(version)).await.unwrap().id());
    }
    queue::cancel(&mut tx, ids[0]).await.unwrap();
    let page = |filter: jobs::Filter| (filter, None::<JobId>);
    for ((filter, before), expected) in [
        (page(jobs::Filter::default()), vec![ids[2], ids[1], ids[0]]),
        (page(jobs::Filter { state: Some(JobState::Cancelled), ..Default::default() }), vec![ids[0]]),
        (page(jobs::Filter { krate: Some(krate("B")), ..Default::default() }), vec![ids[1]]),
        ((jobs::Filter::default(), Some(ids[1])), vec![ids[0]]),
    ] {
        let found = jobs::page(&mut tx, &filter, before, 10).await.unwrap();
        assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), expected);
    }
}

/// Each change of state says so, in order.
#[sqlx::test(migrations = "../migrations")]
async fn changes_are_announced(pool: PgPool) {
    use cratemill_protocol::bus::{DomainEvent, EventMessage, decode};
    let mut tx = pool.begin().await.unwrap();
    let running = crate::support::running(&mut tx, "a").await;
    let held = running.held(&mut tx).await;
    crate::support::succeed(&mut tx, &held).await;
    let entries = cratemill_store::outbox::oldest(&mut tx, 10).await.unwrap();
    let states: Vec<JobState> = entries
        .iter()
        .flat_map(|entry| &entry.payloads)
        .filter_map(|payload| match decode::<EventMessage>(payload).unwrap().event {
            DomainEvent::Job(JobChanged { state, .. }) => Some(state),
            _ => None,
        })
        .collect();
    assert_eq!(states, [JobState::Queued, JobState::Assigned, JobState::Running, JobState::Succeeded]);
    let subject = format!("event.job.a.{}", running.job);
    assert!(entries.iter().flat_map(|entry| &entry.subjects).all(|of| *of == subject));
}

/// Whoever puts it into its line may hold none of the builders that can take it.
#[sqlx::test(migrations = "../migrations")]
async fn all_dispatchers_are_told_of_what_falls_due(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let version = version(&mut conn, "a").await;
    let later = Some(OffsetDateTime::now_utc() + Duration::hours(1));
    queue::enqueue(&mut conn, &NewJob { run_at: later, ..job(version) }).await.unwrap();
    let mut listener = database::listen(&pool, &[Channel::Jobs, Channel::Outbox]).await.unwrap();
    assert_eq!(queue::promote(&mut conn, 10).await.unwrap(), 0);
    database::notify(&mut conn, Channel::Outbox).await.unwrap();
    assert_eq!(listener.recv().await.unwrap().channel(), Channel::Outbox.name(), "nothing was told");
    sqlx::query("UPDATE queue SET run_at = now()").execute(&mut *conn).await.unwrap();
    assert_eq!(queue::promote(&mut conn, 10).await.unwrap(), 1);
    assert_eq!(listener.recv().await.unwrap().channel(), Channel::Jobs.name());
}

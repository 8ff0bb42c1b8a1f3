//! Outcomes: which successes are believed, what follows, and what a failure costs.

use crate::support::{
    ARM, Builder, Hanging, LINUX, Store, Work, apply, key, lease_now, metadata, no_objects,
};
use cratemill_dispatcher::{
    cleanup,
    consume::Handled,
    outcomes::{Applied, Outcomes},
    rescue::{self, Patience},
    wakes::Wakes,
};
use cratemill_protocol::{
    ArtifactName, Attempt, BuilderId, FailureClass, JobId, JobState, Kind, Outcome, Priority, Sha256Hex,
    bus::{self, OutcomeBatch, OutcomeMessage},
    job::Timings,
};
use cratemill_store::{
    PgPool, artifacts, attempts, jobs,
    objects::{self, Objects},
    queue,
    uploads::{self, Upload},
};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::time::Instant;

const CATCH_UP: Duration = Duration::from_secs(30);

async fn job(pool: &PgPool, id: JobId) -> jobs::Job {
    jobs::find(&mut pool.acquire().await.unwrap(), id).await.unwrap().unwrap()
}

async fn ended(pool: &PgPool, objects: &Objects, message: &OutcomeMessage) -> (JobState, &'static str) {
    match apply(pool, objects, message).await.unwrap() {
        Applied::Ended { state, result, .. } => (state, result),
        Applied::Stale => panic!("the attempt has the job"),
    }
}

/// How many jobs the only builder waits for.
async fn slots(pool: &PgPool) -> i32 {
    sqlx::query_scalar("SELECT slots FROM builder_sessions").fetch_one(pool).await.unwrap()
}

fn failed(class: FailureClass) -> Outcome {
    Outcome::Failed { class, message: "why\0".into(), stage: None, timings: Timings::default() }
}

#[sqlx::test(migrations = "../migrations")]
async fn binaries_are_to_be_built_for_every_target(pool: PgPool) {
    let store = Store::start().await;
    let builder = Builder::connect(&mut pool.acquire().await.unwrap(), 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    work.upload(&pool, &store.objects, "demo.json", &metadata("bin")).await;
    let success = work.succeeded(&builder);
    assert_eq!(ended(&pool, &store.objects, &success).await, (JobState::Succeeded, "succeeded"));

    let mut conn = pool.acquire().await.unwrap();
    let follow_ups = queue::candidates(&mut conn, &[LINUX.into(), ARM.into()], 10).await.unwrap();
    let mut targets: Vec<_> = follow_ups.iter().map(|job| job.target.to_string()).collect();
    targets.sort();
    assert_eq!(targets, [ARM, LINUX]);
    let follow_up = job(&pool, follow_ups[0].id).await;
    assert_eq!((follow_up.kind, follow_up.priority), (Kind::Tarball, Priority::OnDemand));
    assert_eq!(follow_up.parent_id, Some(work.job.0));
    let listed = artifacts::of_version(&mut conn, follow_up.version_id).await.unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (1, "demo.json"));
    assert_eq!(Some(&listed[0].manifest), success.manifest.as_ref());
    // The bus hands it out again: nothing changes.
    assert_eq!(apply(&pool, &store.objects, &success).await.unwrap(), Applied::Stale);
    assert_eq!(queue::lengths(&mut conn).await.unwrap(), (2, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn nothing_follows_from_a_library_and_from_a_tarball(pool: PgPool) {
    let store = Store::start().await;
    let builder = Builder::connect(&mut pool.acquire().await.unwrap(), 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    work.upload(&pool, &store.objects, "demo.json", &metadata("lib")).await;
    ended(&pool, &store.objects, &work.succeeded(&builder)).await;
    let mut conn = pool.acquire().await.unwrap();
    assert_eq!(queue::lengths(&mut conn).await.unwrap(), (0, 0));

    let version = job(&pool, work.job).await.version_id;
    let new = crate::support::new_job(version, Kind::Tarball, LINUX);
    queue::enqueue(&mut conn, &new).await.unwrap();
    let mut work = Work::take(&mut conn, &builder).await;
    work.upload(&pool, &store.objects, "demo.tar.gz", b"bytes").await;
    assert_eq!(ended(&pool, &store.objects, &work.succeeded(&builder)).await.0, JobState::Succeeded);
    assert_eq!(queue::lengths(&mut conn).await.unwrap(), (0, 0));
}

/// It was withdrawn while a builder had it: what is in the queue then must not be in it later.
#[sqlx::test(migrations = "../migrations")]
async fn nothing_follows_from_a_version_that_was_withdrawn(pool: PgPool) {
    let store = Store::start().await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let version = crate::support::version(&mut conn).await;
    for withdraw in
        ["UPDATE versions SET yanked = true", "UPDATE versions SET blocked = true, yanked = false"]
    {
        sqlx::query(withdraw).execute(&mut *conn).await.unwrap();
        for succeeds in [true, false] {
            queue::enqueue(&mut conn, &crate::support::new_job(version, Kind::Metadata, "any"))
                .await
                .unwrap();
            let mut work = Work::take(&mut conn, &builder).await;
            work.upload(&pool, &store.objects, "demo.json", &metadata("bin")).await;
            let (outcome, state) = if succeeds {
                (work.succeeded(&builder), JobState::Succeeded)
            } else {
                (work.outcome(&builder, failed(FailureClass::Lost)), JobState::Cancelled)
            };
            assert_eq!(ended(&pool, &store.objects, &outcome).await.0, state, "{withdraw}");
            assert_eq!(queue::lengths(&mut conn).await.unwrap(), (0, 0), "{withdraw}");
        }
    }
}

/// A success that cannot be believed is tried again, and lists nothing.
#[sqlx::test(migrations = "../migrations")]
async fn a_success_must_be_what_it_claims(pool: PgPool) {
    type Forge = fn(&mut Work, &mut Builder) -> Option<OutcomeMessage>;
    let forgeries: [(&str, Forge); 8] = [
        ("without", |work, builder| {
            Some(work.outcome(builder, Outcome::Succeeded { timings: Timings::default() }))
        }),
        ("does not verify", |work, builder| {
            let text = work.succeeded(builder).manifest.unwrap().replace("1.95.0", "1.94.0");
            Some(OutcomeMessage { manifest: Some(text), ..work.succeeded(builder) })
        }),
        ("does not verify", |_, builder| {
            builder.key = key(99);
            None
        }),
        ("another version", |work, _| {
            work.manifest.version = "2.0.0".into();
            None
        }),
        ("another source", |work, _| {
            work.manifest.source_sha256 = Sha256Hex::of(b"other");
            None
        }),
        ("another kind", |work, _| {
            work.manifest.kind = Kind::Debian;
            None
        }),
        ("not what the manifest says", |work, _| {
            work.manifest.artifacts[0].sha256 = Sha256Hex::of(b"other");
            None
        }),
        ("was not uploaded", |work, _| {
            work.manifest.artifacts[0].name = ArtifactName::parse("other").unwrap();
            None
        }),
    ];
    let store = Store::start().await;
    let mut conn = pool.acquire().await.unwrap();
    let mut builder = Builder::connect(&mut conn, 1).await;
    let version = crate::support::version(&mut conn).await;
    for (why, forge) in forgeries {
        let new = crate::support::new_job(version, Kind::Tarball, LINUX);
        let id = queue::enqueue(&mut conn, &new).await.unwrap().id();
        let mut work = Work::take(&mut conn, &builder).await;
        work.upload(&pool, &store.objects, "demo.tar.gz", b"bytes").await;
        let forged = forge(&mut work, &mut builder).unwrap_or_else(|| work.succeeded(&builder));
        assert_eq!(
            ended(&pool, &store.objects, &forged).await,
            (JobState::Queued, "infrastructure"),
            "{why}"
        );
        let row = job(&pool, id).await;
        assert_eq!((row.tries, row.failure_class.as_deref()), (1, Some("infrastructure")));
        assert!(row.failure_message.as_ref().unwrap().contains(why), "{row:?}");
        assert!(artifacts::of_version(&mut conn, version).await.unwrap().is_empty());
        queue::cancel(&mut conn, id).await.unwrap();
        builder.key = key(1);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn metadata_that_is_none_is_refused(pool: PgPool) {
    let store = Store::start().await;
    let builder = Builder::connect(&mut pool.acquire().await.unwrap(), 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    work.upload(&pool, &store.objects, "demo.json", b"no json").await;
    let end = ended(&pool, &store.objects, &work.succeeded(&builder)).await;
    assert_eq!(end, (JobState::Queued, "infrastructure"));
}

#[sqlx::test(migrations = "../migrations")]
async fn only_who_has_the_job_is_heard(pool: PgPool) {
    let store = Store::start().await;
    let builder = Builder::connect(&mut pool.acquire().await.unwrap(), 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Tarball, LINUX).await;
    work.upload(&pool, &store.objects, "demo.tar.gz", b"bytes").await;
    let success = work.succeeded(&builder);
    for stale in [
        OutcomeMessage { attempt: Attempt(2), ..success.clone() },
        OutcomeMessage { attempt: Attempt(0), ..success.clone() },
        OutcomeMessage { builder: BuilderId(404), ..success.clone() },
        OutcomeMessage { job: JobId(404), ..success.clone() },
    ] {
        assert_eq!(apply(&pool, &store.objects, &stale).await.unwrap(), Applied::Stale);
    }
    assert_eq!(job(&pool, work.job).await.state, JobState::Running);
}

#[sqlx::test(migrations = "../migrations")]
async fn failures_are_final_or_tried_again_five_times(pool: PgPool) {
    let objects = no_objects();
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let work = Work::start(&pool, &builder, Kind::Tarball, LINUX).await;
    let failure = work.outcome(&builder, failed(FailureClass::Build));
    assert_eq!(ended(&pool, &objects, &failure).await, (JobState::Failed, "build"));
    let row = job(&pool, work.job).await;
    assert_eq!(row.failure_message.as_deref(), Some("why"), "without what the database refuses");

    // Leases that ran out, each found by a rescue.
    let new = crate::support::new_job(row.version_id, Kind::Tarball, LINUX);
    let id = queue::enqueue(&mut conn, &new).await.unwrap().id();
    for attempt in 1..=5 {
        lease_now(&mut conn, id, &builder, 60).await;
        assert!(queue::accept(&mut conn, id, Attempt(attempt), builder.id, -1).await.unwrap());
        assert_eq!(rescue::expire_leases(&pool).await.unwrap(), 1);
        let row = job(&pool, id).await;
        let expected = if attempt < 5 { JobState::Queued } else { JobState::Failed };
        assert_eq!((row.state, row.failure_class.as_deref()), (expected, Some("lost")), "{attempt}");
        let waits = row.run_at - row.created_at;
        assert!(waits <= time::Duration::seconds(5 << attempt), "{waits}");
    }
    assert_eq!(rescue::expire_leases(&pool).await.unwrap(), 0);
    assert_eq!(attempts::of_job(&mut conn, id).await.unwrap().len(), 5);
}

/// Whatever keeps builders from taking a job says nothing about the job.
#[sqlx::test(migrations = "../migrations")]
async fn attempts_that_nobody_took_are_no_tries(pool: PgPool) {
    let objects = no_objects();
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let version = crate::support::version(&mut conn).await;
    let new = crate::support::new_job(version, Kind::Tarball, LINUX);
    let id = queue::enqueue(&mut conn, &new).await.unwrap().id();
    assert_eq!(slots(&pool).await, 0);
    for _ in 0..6 {
        lease_now(&mut conn, id, &builder, -1).await;
        assert_eq!(rescue::expire_leases(&pool).await.unwrap(), 1);
    }
    // One that its builder rejects, and one that it took.
    let failure = |attempt| OutcomeMessage {
        job: id,
        attempt: Attempt(attempt),
        builder: builder.id,
        outcome: failed(FailureClass::Infrastructure),
        last_seq: 0,
        manifest: None,
        signature: None,
        at_ms: 0,
    };
    for (attempt, accepts) in [(7, false), (8, true)] {
        lease_now(&mut conn, id, &builder, 60).await;
        if accepts {
            assert!(queue::accept(&mut conn, id, Attempt(attempt), builder.id, 60).await.unwrap());
        }
        assert_eq!(ended(&pool, &objects, &failure(attempt)).await.0, JobState::Queued);
        assert_eq!(job(&pool, id).await.tries, i32::from(accepts));
        // What it was not given it waits for still; once it accepted, it asks itself.
        assert_eq!(slots(&pool).await, -i32::from(accepts));
    }
}

/// While the database was away nobody could renew a lease: those who hold one get the time to.
#[sqlx::test(migrations = "../migrations")]
async fn after_an_outage_nothing_is_thrown_away_at_once(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let work = Work::start(&pool, &builder, Kind::Tarball, LINUX).await;
    assert!(queue::accept(&mut conn, work.job, work.attempt, builder.id, -1).await.unwrap());
    let (wakes, started) = (Wakes::default(), Instant::now());
    let mut patience = Patience::new(CATCH_UP, started);
    let state_at = async |patience: &mut Patience, now| {
        rescue::turn(&pool, &wakes, patience, now).await.unwrap();
        job(&pool, work.job).await.state
    };
    assert_eq!(
        state_at(&mut patience, started).await,
        JobState::Running,
        "all dispatchers may have been away"
    );
    patience.outage.failed("the database is away");
    let back = started + CATCH_UP / 2;
    assert_eq!(state_at(&mut patience, back).await, JobState::Running);
    assert_eq!(
        state_at(&mut patience, started + CATCH_UP).await,
        JobState::Running,
        "a second outage in the first's grace"
    );
    assert_eq!(state_at(&mut patience, back + CATCH_UP).await, JobState::Queued);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_that_was_asked_to_stop_ends_cancelled(pool: PgPool) {
    let objects = no_objects();
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let version = crate::support::version(&mut conn).await;
    for outcome in [Outcome::Cancelled, failed(FailureClass::Build), failed(FailureClass::Lost)] {
        let new = crate::support::new_job(version, Kind::Tarball, LINUX);
        queue::enqueue(&mut conn, &new).await.unwrap();
        let work = Work::take(&mut conn, &builder).await;
        queue::cancel(&mut conn, work.job).await.unwrap();
        assert_eq!(ended(&pool, &objects, &work.outcome(&builder, outcome)).await.0, JobState::Cancelled);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_outcome_waits_for_the_object_store(pool: PgPool) {
    let store = Store::start().await;
    let builder = Builder::connect(&mut pool.acquire().await.unwrap(), 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    work.upload(&pool, &store.objects, "demo.json", &metadata("bin")).await;
    let payload = bus::encode(&OutcomeBatch { outcomes: vec![work.succeeded(&builder)] });
    let handle = async |objects: &Objects, payload: &[u8], deliveries| {
        let (outcomes, rounds) = Outcomes::new((pool.clone(), pool.clone()), objects.clone(), Arc::default());
        tokio::select! {
            handled = outcomes.handle(payload, deliveries) => handled,
            () = rounds => unreachable!("somebody can ask still"),
        }
    };
    let later = handle(&no_objects(), &payload, 1).await;
    assert!(matches!(later, Handled::Later(_)));
    assert_eq!(job(&pool, work.job).await.state, JobState::Running, "nothing is lost");
    assert_eq!(handle(&store.objects, &payload, 2).await, Handled::Done);
    assert_eq!(job(&pool, work.job).await.state, JobState::Succeeded);
    assert_eq!(handle(&store.objects, &payload, 3).await, Handled::Done, "again");
    // A dispatcher of another version may be able to read it.
    assert!(matches!(handle(&store.objects, b"no message", 1).await, Handled::Later(_)));
    assert_eq!(handle(&store.objects, b"no message", 5).await, Handled::Poison);
}

/// A newer node says something of one attempt that this program does not know, in one message with others.
#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_read_costs_nobody_else(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let unknown = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    let version = job(&pool, unknown.job).await.version_id;
    queue::enqueue(&mut conn, &crate::support::new_job(version, Kind::Tarball, LINUX)).await.unwrap();
    let known = Work::take(&mut conn, &builder).await;
    sqlx::query("UPDATE leases SET lease_until = now() + interval '5 s'").execute(&mut *conn).await.unwrap();
    let mut batch = serde_json::to_value(OutcomeBatch {
        outcomes: vec![
            unknown.outcome(&builder, Outcome::Cancelled),
            known.outcome(&builder, failed(FailureClass::Build)),
        ],
    })
    .unwrap();
    batch["outcomes"][0]["outcome"] = serde_json::json!({ "result": "postponed", "until": 7 });
    let payload = bus::encode(&batch);

    let (outcomes, rounds) = Outcomes::new((pool.clone(), pool.clone()), no_objects(), Arc::default());
    let test = async {
        let later = outcomes.handle(&payload, 1).await;
        assert!(matches!(later, Handled::Later(_)), "a newer dispatcher may know it: {later:?}");
        assert_eq!(job(&pool, known.job).await.state, JobState::Failed, "nobody waits for that");
        let lease_s: f64 =
            sqlx::query_scalar("SELECT extract(epoch FROM lease_until - now())::float8 FROM leases")
                .fetch_one(&pool)
                .await
                .unwrap();
        assert!(lease_s > 30.0, "it keeps its job: {lease_s}");
        assert_eq!(outcomes.handle(&payload, 5).await, Handled::Poison);
    };
    tokio::select! {
        () = test => {}
        () = rounds => unreachable!("somebody can ask still"),
    }
}

/// A store that hangs costs only the outcomes that need it, and these keep their jobs.
#[sqlx::test(migrations = "../migrations")]
async fn nobody_else_waits_for_an_object_store_that_hangs(pool: PgPool) {
    let store = Store::start().await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut metadata_work = Work::start(&pool, &builder, Kind::Metadata, "any").await;
    metadata_work.upload(&pool, &store.objects, "demo.json", &metadata("lib")).await;
    let version = job(&pool, metadata_work.job).await.version_id;
    queue::enqueue(&mut conn, &crate::support::new_job(version, Kind::Tarball, LINUX)).await.unwrap();
    let mut tarball = Work::take(&mut conn, &builder).await;
    tarball.upload(&pool, &store.objects, "demo.tar.gz", b"bytes").await;
    // Its builder has been told that its part is done, so that nobody renews this.
    sqlx::query("UPDATE leases SET lease_until = now() + interval '5 s'").execute(&mut *conn).await.unwrap();

    let mut hanging = Hanging::start().await;
    let (outcomes, rounds) =
        Outcomes::new((pool.clone(), pool.clone()), hanging.objects.clone(), Arc::default());
    // More than the places of those that have a transaction of their own.
    let reading = bus::encode(&OutcomeBatch { outcomes: vec![metadata_work.succeeded(&builder); 8] });
    let other = bus::encode(&OutcomeBatch { outcomes: vec![tarball.succeeded(&builder)] });
    let test = async {
        let mut waits = std::pin::pin!(outcomes.handle(&reading, 1));
        let meanwhile = async {
            let question = hanging.asked().await;
            let lease_s: f64 = sqlx::query_scalar(
                "SELECT extract(epoch FROM lease_until - now())::float8 FROM leases WHERE job_id = $1",
            )
            .bind(metadata_work.job.0)
            .fetch_one(&pool)
            .await
            .unwrap();
            assert!(lease_s > 30.0, "{lease_s}");
            assert_eq!(outcomes.handle(&other, 1).await, Handled::Done);
            question
        };
        let _question = tokio::select! {
            handled = &mut waits => panic!("{handled:?}, before the other"),
            question = meanwhile => question,
        };
        assert_eq!(job(&pool, tarball.job).await.state, JobState::Succeeded);
        assert!(matches!(waits.await, Handled::Later(_)), "it comes again");
        assert_eq!(job(&pool, metadata_work.job).await.state, JobState::Running, "nothing is lost");
    };
    tokio::select! {
        () = test => {}
        () = rounds => unreachable!("somebody can ask still"),
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_a_failed_attempt_left_is_removed(pool: PgPool) {
    let store = Store::start().await;
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let mut work = Work::start(&pool, &builder, Kind::Tarball, LINUX).await;
    work.upload(&pool, &store.objects, "demo.tar.gz", b"bytes").await;
    let upload = uploads::of_attempt(&mut conn, work.job, work.attempt).await.unwrap().remove(0);
    let object = upload.object.clone();
    // The first that it comes to cannot be deleted: for the store it is a folder.
    let bad = Upload { name: "a".to_owned().try_into().unwrap(), object: "artifacts".into(), ..upload };
    assert!(uploads::record(&mut conn, work.job, work.attempt, &bad).await.unwrap());
    ended(&pool, &store.objects, &work.outcome(&builder, failed(FailureClass::Timeout))).await;

    let hour = time::Duration::hours(1);
    cleanup::round(&pool, &store.objects, OffsetDateTime::now_utc() - hour).await.unwrap();
    assert_eq!(store.objects.get_bytes(&object, 100).await.unwrap(), "bytes", "too early");
    cleanup::round(&pool, &store.objects, OffsetDateTime::now_utc() + hour).await.unwrap();
    let gone = store.objects.get_bytes(&object, 100).await;
    assert!(matches!(gone, Err(objects::Error::NotFound(_))), "{gone:?}");
    let left = uploads::of_attempt(&mut conn, work.job, work.attempt).await.unwrap();
    assert_eq!(left.iter().map(|upload| &*upload.name).collect::<Vec<_>>(), ["a"], "it is tried again");
    // More than one statement forgets.
    sqlx::query(
        "INSERT INTO download_installs SELECT who, 1, 1, 0, now() - interval '1 minute' * who FROM generate_series(1, 20100) who",
    )
    .execute(&pool)
    .await
    .unwrap();
    let away = cleanup::round(&pool, &no_objects(), OffsetDateTime::now_utc() + hour).await;
    assert!(format!("{:#}", away.unwrap_err()).contains("the object store is away"));
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM download_installs").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 29, "that needs no object store");
}

//! The state machine of a job, and the fence: an attempt that lost the job can change nothing.

use crate::support::{ARM, LINUX, connected, job, lease, lose, record, running, succeed, upload, version};
use cratemill_protocol::{Attempt, BuilderId, FailureClass, JobId, JobState, Outcome, Stage, job::Timings};
use cratemill_store::{
    PgConnection, PgPool, attempts, jobs,
    queue::{self, Cancelled, End, Ended},
    uploads,
};

async fn state(conn: &mut PgConnection, job: JobId) -> JobState {
    jobs::find(conn, job).await.unwrap().unwrap().state
}

fn failed(class: FailureClass) -> Outcome {
    Outcome::Failed { class, message: "why".into(), stage: Some(Stage::Build), timings: Timings::default() }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_goes_all_the_way(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let running = running(&mut tx, "a").await;
    let (job, attempt, builder) = (running.job, running.attempt, running.builder);
    // A lost answer makes the builder say it again.
    assert!(queue::accept(&mut tx, job, attempt, builder, 60).await.unwrap());
    for stage in [Stage::Fetch, Stage::Build, Stage::Build, Stage::Upload] {
        assert!(queue::set_stage(&mut tx, job, attempt, builder, stage).await.unwrap());
    }
    let held = queue::Renewed { job, attempt, cancel_requested: false };
    assert_eq!(queue::renew(&mut tx, builder, &[(job, attempt)], 60).await.unwrap(), [held]);
    assert!(uploads::allowed(&mut tx, job, attempt).await.unwrap());
    record(&mut tx, &running, "a.tar.gz").await;

    let held = running.held(&mut tx).await;
    assert_eq!(
        (held.builder, held.version, held.tries, held.cancel_requested),
        (builder, running.version, 0, false)
    );
    succeed(&mut tx, &held).await;

    let done = jobs::find(&mut tx, job).await.unwrap().unwrap();
    assert_eq!((done.state, done.builder_name.as_deref()), (JobState::Succeeded, Some("a")));
    assert!(done.started_at.is_some() && done.finished_at.is_some());
    let tries = attempts::of_job(&mut tx, job).await.unwrap();
    assert_eq!((tries.len(), tries[0].result.as_deref()), (1, Some("succeeded")));
    assert_eq!(tries[0].timings.as_ref().unwrap()["build_ms"], 7);
    assert_eq!((tries[0].stage.as_deref(), tries[0].accepted_at.is_some()), (Some("upload"), true));
    // The first word stands.
    let late = failed(FailureClass::Build);
    let end = End::Failed { class: FailureClass::Build, message: "why" };
    queue::finish(&mut tx, &held, end, Ended { outcome: &late, last_seq: None }).await.unwrap();
    assert_eq!(attempts::of_job(&mut tx, job).await.unwrap()[0].result.as_deref(), Some("succeeded"));
    assert_eq!(state(&mut tx, job).await, JobState::Succeeded);
    fenced(&mut tx, job, attempt, builder).await;
}

/// Nothing that this attempt says is heard.
async fn fenced(conn: &mut PgConnection, job: JobId, attempt: Attempt, builder: BuilderId) {
    assert!(!queue::accept(conn, job, attempt, builder, 60).await.unwrap());
    assert!(!queue::set_stage(conn, job, attempt, builder, Stage::Build).await.unwrap());
    assert!(queue::renew(conn, builder, &[(job, attempt)], 60).await.unwrap().is_empty());
    assert!(queue::hold(conn, job, attempt).await.unwrap().is_none());
    assert!(!uploads::allowed(conn, job, attempt).await.unwrap());
    assert!(!uploads::record(conn, job, attempt, &upload("late")).await.unwrap());
}

#[sqlx::test(migrations = "../migrations")]
async fn an_attempt_that_lost_the_job_changes_nothing(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let old = running(&mut tx, "a").await;
    let held = old.held(&mut tx).await;
    lose(&mut tx, &held, 0.0).await;
    fenced(&mut tx, old.job, old.attempt, old.builder).await;
    assert_eq!(jobs::find(&mut tx, old.job).await.unwrap().unwrap().tries, 1);

    let other = connected(&mut tx, "other", LINUX).await;
    let (job, attempt) = lease(&mut tx, other, 60).await;
    assert_eq!((job, attempt), (old.job, Attempt(2)));
    fenced(&mut tx, old.job, old.attempt, old.builder).await;
    // Not even with the right number, as somebody else.
    assert!(!queue::accept(&mut tx, job, attempt, old.builder, 60).await.unwrap());
    assert!(queue::accept(&mut tx, job, attempt, other, 60).await.unwrap());
    assert!(!queue::set_stage(&mut tx, job, attempt, old.builder, Stage::Build).await.unwrap());
    assert!(queue::renew(&mut tx, old.builder, &[(job, attempt)], 60).await.unwrap().is_empty());
    fenced(&mut tx, old.job, old.attempt, old.builder).await;
    let held = queue::Renewed { job, attempt, cancel_requested: false };
    assert_eq!(queue::renew(&mut tx, other, &[(job, attempt)], 60).await.unwrap(), [held]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_lease_that_ran_out_is_found_once(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let version = version(&mut conn, "a").await;
    let builder = connected(&mut conn, "b", LINUX).await;
    queue::enqueue(&mut conn, &job(version)).await.unwrap();
    let (id, attempt) = lease(&mut conn, builder, -1).await;

    let (mut one, mut two) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    let expired = queue::expired(&mut one, 10).await.unwrap();
    assert_eq!((expired.len(), expired[0].id, expired[0].attempt), (1, id, attempt));
    assert!(queue::expired(&mut two, 10).await.unwrap().is_empty(), "another dispatcher has it");
    lose(&mut one, &expired[0], 3_600.0).await;
    one.commit().await.unwrap();
    assert!(queue::expired(&mut two, 10).await.unwrap().is_empty());

    let row = jobs::find(&mut conn, id).await.unwrap().unwrap();
    assert_eq!((row.state, row.tries, row.builder_id), (JobState::Queued, 0, None), "nobody took it");
    assert_eq!(row.failure_class.as_deref(), Some("lost"));
    assert!(
        queue::candidates(&mut conn, &[LINUX.into()], 10).await.unwrap().is_empty(),
        "it waits for its time"
    );
    // Asking for it again does not shorten a backoff.
    queue::enqueue(&mut conn, &job(version)).await.unwrap();
    assert!(queue::candidates(&mut conn, &[LINUX.into()], 10).await.unwrap().is_empty());
}

#[sqlx::test(migrations = "../migrations")]
async fn cancel_in_each_state(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    assert_eq!(queue::cancel(&mut tx, JobId(404)).await.unwrap(), None);

    let version = version(&mut tx, "a").await;
    let builder = connected(&mut tx, "b", LINUX).await;
    let id = queue::enqueue(&mut tx, &job(version)).await.unwrap().id();
    assert_eq!(queue::cancel(&mut tx, id).await.unwrap(), Some(Cancelled::Done));
    assert_eq!(state(&mut tx, id).await, JobState::Cancelled);
    assert_eq!(queue::cancel(&mut tx, id).await.unwrap(), Some(Cancelled::Final(JobState::Cancelled)));

    let id = queue::enqueue(&mut tx, &job(version)).await.unwrap().id();
    let (_, attempt) = lease(&mut tx, builder, 60).await;
    let asked = Some(Cancelled::Asked { builder, attempt });
    assert_eq!(queue::cancel(&mut tx, id).await.unwrap(), asked, "assigned");
    assert!(queue::accept(&mut tx, id, attempt, builder, 60).await.unwrap());
    assert_eq!(queue::cancel(&mut tx, id).await.unwrap(), asked, "running");
    let held = queue::hold(&mut tx, id, attempt).await.unwrap().unwrap();
    assert!(held.cancel_requested);
    let outcome = failed(FailureClass::Build);
    let end = End::Failed { class: FailureClass::Build, message: "no" };
    queue::finish(&mut tx, &held, end, Ended { outcome: &outcome, last_seq: None }).await.unwrap();
    assert_eq!(queue::cancel(&mut tx, id).await.unwrap(), Some(Cancelled::Final(JobState::Failed)));
    let row = jobs::find(&mut tx, id).await.unwrap().unwrap();
    assert_eq!((row.failure_class.as_deref(), row.failure_message.as_deref()), (Some("build"), Some("no")));
}

#[sqlx::test(migrations = "../migrations")]
async fn an_attempt_that_was_asked_to_stop_ends_cancelled(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let running = running(&mut tx, "a").await;
    queue::cancel(&mut tx, running.job).await.unwrap();
    let held = running.held(&mut tx).await;
    assert!(held.cancel_requested);
    let ended = Ended { outcome: &Outcome::Cancelled, last_seq: None };
    queue::finish(&mut tx, &held, End::Cancelled, ended).await.unwrap();
    assert_eq!(state(&mut tx, running.job).await, JobState::Cancelled);
    assert_eq!(queue::lengths(&mut tx).await.unwrap(), (0, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn logs_are_archived_once_the_attempt_ended(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let running = running(&mut tx, "a").await;
    let (job, attempt) = (running.job, running.attempt);
    let log = attempts::log(&mut tx, job, None).await.unwrap().unwrap();
    assert_eq!((log.attempt, log.ended, log.log_object), (attempt, false, None));
    assert!(attempts::to_archive(&mut tx, 10).await.unwrap().is_empty());

    let held = running.held(&mut tx).await;
    lose(&mut tx, &held, 0.0).await;
    let waiting = attempts::to_archive(&mut tx, 10).await.unwrap();
    assert_eq!((waiting.len(), waiting[0].last_seq, waiting[0].state), (1, Some(4), JobState::Queued));
    assert!(waiting[0].ended_ago_s >= 0.0);
    // A later attempt does not change what became of this one.
    lease(&mut tx, running.builder, 60).await;
    assert_eq!(attempts::to_archive(&mut tx, 10).await.unwrap()[0].state, JobState::Queued);

    assert!(attempts::archived_among(&mut tx, &[(job, attempt)]).await.unwrap().is_empty());
    assert!(attempts::archived(&mut tx, job, attempt, "logs/x", 12, 0).await.unwrap());
    assert!(
        !attempts::archived(&mut tx, job, attempt, "logs/late", 0, 0).await.unwrap(),
        "the first one stays"
    );
    assert!(attempts::to_archive(&mut tx, 10).await.unwrap().is_empty());
    let asked = [(job, attempt), (job, Attempt(2)), (JobId(404), attempt)];
    assert_eq!(attempts::archived_among(&mut tx, &asked).await.unwrap(), [(job, attempt)]);
    let log = attempts::log(&mut tx, job, Some(attempt)).await.unwrap().unwrap();
    assert_eq!((log.log_object.as_deref(), log.log_bytes, log.ended), (Some("logs/x"), Some(12), true));
    assert_eq!(attempts::log(&mut tx, job, None).await.unwrap().unwrap().attempt, Attempt(2));
    assert!(attempts::log(&mut tx, JobId(404), None).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_for_another_target_is_left_alone(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let version = version(&mut tx, "a").await;
    queue::enqueue(&mut tx, &job(version)).await.unwrap();
    assert!(queue::candidates(&mut tx, &[ARM.into()], 1).await.unwrap().is_empty());
    assert_eq!(queue::candidates(&mut tx, &[ARM.into(), LINUX.into()], 1).await.unwrap().len(), 1);
}

/// Acceptances lock in this order: in another one they and a renewal would wait for each other.
#[sqlx::test(migrations = "../migrations")]
async fn a_renewal_locks_leases_in_the_order_of_their_jobs(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let builder = connected(&mut conn, "b", LINUX).await;
    let mut jobs = Vec::new();
    for name in ["a", "b"] {
        let version = version(&mut conn, name).await;
        queue::enqueue(&mut conn, &job(version)).await.unwrap();
        jobs.push(lease(&mut conn, builder, 60).await.0);
    }
    let (first, second) = (jobs[0].min(jobs[1]), jobs[0].max(jobs[1]));
    // The other way round in the table too: a row that changes goes to its end.
    sqlx::query("UPDATE leases SET tries = tries WHERE job_id = $1")
        .bind(first.0)
        .execute(&mut *conn)
        .await
        .unwrap();
    let lock = "SELECT FROM leases WHERE job_id = $1 FOR UPDATE NOWAIT";
    let mut holding = pool.begin().await.unwrap();
    sqlx::query(lock).bind(first.0).execute(&mut *holding).await.unwrap();
    let of_renewal = pool.clone();
    let renewing = tokio::spawn(async move {
        let attempts = [(second, Attempt(1)), (first, Attempt(1))];
        let mut conn = of_renewal.acquire().await.unwrap();
        queue::renew(&mut conn, builder, &attempts, 60).await.unwrap().len()
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN
                 (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *conn).await.unwrap() == 0 {
        assert!(!renewing.is_finished(), "it waits for the first lease");
        tokio::task::yield_now().await;
    }
    let free = sqlx::query(lock).bind(second.0).execute(&mut *holding).await;
    assert!(free.is_ok(), "it holds none while it waits for the first: {free:?}");
    holding.commit().await.unwrap();
    assert_eq!(renewing.await.unwrap(), 2);
}

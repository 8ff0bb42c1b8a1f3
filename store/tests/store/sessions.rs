//! Sessions: which builders wait, for how many jobs, and where.

use crate::support::{ARM, LINUX, connected, job, lease, node, silence, target, version};
use cratemill_protocol::{Attempt, BuilderId, JobId, Outcome, Target, builder::JobRef, bus::BuildRequest};
use cratemill_store::{
    PgConnection, PgPool, builders,
    nodes::Run,
    queue::{self, End, Ended, NewJob},
    sessions::{self, Gone},
};
use time::{Duration, OffsetDateTime};

fn request(builder: BuilderId, connection: &str, slots: u16, serial: u64) -> BuildRequest {
    let targets = vec![target(LINUX)];
    let answered = Vec::new();
    BuildRequest {
        builder,
        connection: connection.into(),
        node: "node-1".into(),
        targets,
        slots,
        answered,
        serial,
    }
}

async fn free_slots(conn: &mut PgConnection) -> Vec<i32> {
    sessions::waiting(conn, 10, &[]).await.unwrap().into_iter().map(|waiting| waiting.slots).collect()
}

fn gone(builder: BuilderId, job: JobId, attempt: Attempt, accepted: bool) -> Gone {
    Gone { builder, job, attempt, accepted }
}

/// Something to build for a target.
async fn queued(conn: &mut PgConnection, name_of_target: &str) {
    let version = version(conn, "queued").await;
    queue::enqueue(conn, &NewJob { target: target(name_of_target), ..job(version) }).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn the_newest_request_counts(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = connected(&mut tx, "b", LINUX).await;
    queued(&mut tx, LINUX).await;
    assert!(sessions::waiting(&mut tx, 10, &[]).await.unwrap().is_empty(), "nothing asked for yet");
    assert!(sessions::request(&mut tx, &request(id, "c-b", 3, 2)).await.unwrap());
    assert!(!sessions::request(&mut tx, &request(id, "c-b", 9, 1)).await.unwrap(), "an older one");
    assert!(!sessions::request(&mut tx, &request(id, "c-b", 9, 2)).await.unwrap(), "a repeated one");
    assert!(!sessions::request(&mut tx, &request(id, "gone", 9, 5)).await.unwrap());
    let waiting = sessions::waiting(&mut tx, 10, &[]).await.unwrap();
    assert_eq!((waiting.len(), waiting[0].slots, waiting[0].node.as_str()), (1, 3, "node-1"));
    assert_eq!(waiting[0].targets, [LINUX]);

    for (name, free) in [("a", vec![2]), ("b", vec![1]), ("c", vec![])] {
        lease(&mut tx, id, 60).await;
        let version = version(&mut tx, name).await;
        queue::enqueue(&mut tx, &job(version)).await.unwrap();
        assert_eq!(free_slots(&mut tx).await, free);
    }
}

/// A builder, and the job that took its only slot.
async fn a_job_in_flight(conn: &mut PgConnection) -> (BuilderId, JobId, Attempt) {
    let id = connected(conn, "b", LINUX).await;
    let version = version(conn, "a").await;
    queue::enqueue(conn, &job(version)).await.unwrap();
    sessions::request(conn, &request(id, "c-b", 1, 1)).await.unwrap();
    let (job, attempt) = lease(conn, id, 60).await;
    (id, job, attempt)
}

/// A builder that frees a slot while a job is on its way to it must not be given two.
#[sqlx::test(migrations = "../migrations")]
async fn a_request_that_crosses_a_job_does_not_offer_its_slot_again(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, crossing, attempt) = a_job_in_flight(&mut conn).await;
    queued(&mut conn, LINUX).await;

    sessions::request(&mut conn, &request(id, "c-b", 2, 2)).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [1]);
    // One that wants no more is owed nothing for a job that it did not take.
    sessions::request(&mut conn, &request(id, "c-b", 0, 3)).await.unwrap();
    let mut rejected = pool.begin().await.unwrap();
    assert_eq!(sessions::give_back(&mut rejected, &[gone(id, crossing, attempt, false)]).await.unwrap(), 1);
    assert_eq!(free_slots(&mut rejected).await, [0; 0]);
    rejected.rollback().await.unwrap();
    let of = JobRef { job: crossing, attempt };
    let older = JobRef { attempt: Attempt(attempt.0 - 1), ..of };
    for (serial, answered, free) in [(4, older, 1), (5, of, 2), (6, older, 2)] {
        let request = BuildRequest { answered: vec![answered], ..request(id, "c-b", 2, serial) };
        assert!(sessions::request(&mut conn, &request).await.unwrap());
        assert_eq!(free_slots(&mut conn).await, [free], "{answered:?}");
    }
}

/// The request waits for the assignment to commit, and must see the lease that came with it.
#[sqlx::test(migrations = "../migrations")]
async fn a_request_that_waits_for_an_assignment_knows_of_its_job(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    sessions::request(&mut conn, &request(id, "c-b", 1, 1)).await.unwrap();
    queued(&mut conn, LINUX).await;
    let other = version(&mut conn, "other").await;
    queue::enqueue(&mut conn, &NewJob { target: target(LINUX), ..job(other) }).await.unwrap();

    let mut assigning = pool.begin().await.unwrap();
    lease(&mut assigning, id, 60).await;
    let of_request = pool.clone();
    let recording = tokio::spawn(async move {
        let mut tx = of_request.begin().await.unwrap();
        sessions::request(&mut tx, &request(id, "c-b", 1, 2)).await.unwrap();
        tx.commit().await.unwrap();
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN
                 (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *conn).await.unwrap() == 0 {
        assert!(!recording.is_finished(), "it waits for the session");
        tokio::task::yield_now().await;
    }
    assigning.commit().await.unwrap();
    recording.await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [0; 0], "its only slot is taken");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_in_flight_is_forgotten_once_it_arrived_or_is_lost(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, crossing, attempt) = a_job_in_flight(&mut conn).await;
    queued(&mut conn, LINUX).await;
    sessions::request(&mut conn, &request(id, "c-b", 1, 2)).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    let mut lost = pool.begin().await.unwrap();
    assert_eq!(sessions::give_back(&mut lost, &[gone(id, crossing, attempt, false)]).await.unwrap(), 1);
    assert_eq!(free_slots(&mut lost).await, [1]);
    lost.rollback().await.unwrap();
    // The next request does not name it, though it was accepted: when it ends, its slot is the next request's to offer.
    assert!(queue::accept(&mut conn, crossing, attempt, id, 60).await.unwrap());
    sessions::request(&mut conn, &request(id, "c-b", 0, 3)).await.unwrap();
    let held = queue::hold(&mut conn, crossing, attempt).await.unwrap().unwrap();
    let ended = Ended { outcome: &Outcome::Cancelled, last_seq: None };
    queue::finish(&mut conn, &held, End::Cancelled, ended).await.unwrap();
    assert_eq!(sessions::give_back(&mut conn, &[gone(id, crossing, attempt, true)]).await.unwrap(), 0);
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    sessions::request(&mut conn, &request(id, "c-b", 1, 4)).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn those_who_may_not_build_do_not_wait(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = connected(&mut tx, "b", LINUX).await;
    queued(&mut tx, LINUX).await;
    sessions::request(&mut tx, &request(id, "c-b", 1, 1)).await.unwrap();
    for (enabled, drain, waits) in [(true, true, false), (false, false, false), (true, false, true)] {
        assert!(builders::update(&mut tx, id, Some(enabled), Some(drain)).await.unwrap());
        assert_eq!(!sessions::waiting(&mut tx, 10, &[]).await.unwrap().is_empty(), waits);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_builder_that_another_dispatcher_serves_is_passed_over(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    queued(&mut conn, LINUX).await;
    sessions::request(&mut conn, &request(id, "c-b", 1, 1)).await.unwrap();
    let (mut one, mut two) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    assert_eq!(sessions::waiting(&mut one, 10, &[]).await.unwrap().len(), 1);
    assert!(sessions::waiting(&mut two, 10, &[]).await.unwrap().is_empty());
}

/// However many builders wait for what nobody wants built, the one that is needed is found.
#[sqlx::test(migrations = "../migrations")]
async fn only_those_wait_that_something_is_queued_for(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    // Each in a transaction of its own: `now()` is the same within one.
    for (name, name_of_target) in [("a", ARM), ("b", ARM), ("c", LINUX), ("d", LINUX)] {
        let id = connected(&mut conn, name, name_of_target).await;
        assert!(sessions::request(&mut conn, &request(id, &format!("c-{name}"), 1, 1)).await.unwrap());
    }
    let waiting = async |conn: &mut PgConnection, limit| -> Vec<String> {
        let waiting = sessions::waiting(conn, limit, &[]).await.unwrap();
        waiting.into_iter().map(|waiting| waiting.connection).collect()
    };
    assert!(waiting(&mut conn, 10).await.is_empty(), "nothing is queued");
    queued(&mut conn, LINUX).await;
    assert_eq!(waiting(&mut conn, 1).await, ["c-c"]);
    assert_eq!(waiting(&mut conn, 10).await, ["c-c"], "no more than there are jobs");
    for name in ["two", "three", "four"] {
        let version = version(&mut conn, name).await;
        queue::enqueue(&mut conn, &NewJob { target: target(LINUX), ..job(version) }).await.unwrap();
        assert_eq!(waiting(&mut conn, 10).await, ["c-c", "c-d"]);
    }
    let later = OffsetDateTime::now_utc() + Duration::hours(1);
    let version = version(&mut conn, "any").await;
    let new = NewJob { target: Target::any(), run_at: Some(later), ..job(version) };
    queue::enqueue(&mut conn, &new).await.unwrap();
    assert_eq!(waiting(&mut conn, 10).await.len(), 2, "not due yet");
    queue::enqueue(&mut conn, &NewJob { run_at: None, ..new }).await.unwrap();
    assert_eq!(waiting(&mut conn, 10).await, ["c-a", "c-b", "c-c", "c-d"]);
}

/// Any number of jobs for a target without builders keeps no builder of another locked.
#[sqlx::test(migrations = "../migrations")]
async fn what_is_known_to_be_unserved_does_not_count(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    for name in ["a", "b", "c"] {
        let id = connected(&mut conn, name, LINUX).await;
        assert!(sessions::request(&mut conn, &request(id, &format!("c-{name}"), 1, 1)).await.unwrap());
    }
    let arm = connected(&mut conn, "arm", ARM).await;
    assert!(sessions::unserved(&mut conn, &[]).await.unwrap().is_empty(), "nothing is queued");
    for name in ["one", "two"] {
        let version = version(&mut conn, name).await;
        queue::enqueue(&mut conn, &NewJob { target: target(ARM), ..job(version) }).await.unwrap();
    }
    assert_eq!(sessions::unserved(&mut conn, &[]).await.unwrap(), [ARM], "its builder asks for nothing");
    assert!(sessions::unserved(&mut conn, &[ARM.into()]).await.unwrap().is_empty(), "it is known");
    queued(&mut conn, LINUX).await;
    assert_eq!(sessions::unserved(&mut conn, &[]).await.unwrap(), [ARM]);
    let all = sessions::waiting(&mut conn, 10, &[]).await.unwrap();
    assert_eq!((all.len(), all[0].due), (3, 3));
    let known = sessions::waiting(&mut conn, 10, &[ARM.into()]).await.unwrap();
    assert_eq!((known.len(), known[0].due), (1, 1), "as many as jobs that could be served");
    assert!(sessions::request(&mut conn, &request(arm, "c-arm", 1, 1)).await.unwrap());
    assert!(sessions::unserved(&mut conn, &[]).await.unwrap().is_empty());
    // It waits, and gets nothing: nor does its target count.
    for (held_back, again) in [
        ("UPDATE builders SET drain = true WHERE id = $1", "UPDATE builders SET drain = false WHERE id = $1"),
        (
            "INSERT INTO builder_faults (builder_id, faults, last_at, paused_until)
             VALUES ($1, 1, now(), now() + interval '1 h')",
            "DELETE FROM builder_faults WHERE builder_id = $1",
        ),
    ] {
        sqlx::query(held_back).bind(arm.0).execute(&mut *conn).await.unwrap();
        assert_eq!(sessions::unserved(&mut conn, &[]).await.unwrap(), [ARM], "{held_back}");
        sqlx::query(again).bind(arm.0).execute(&mut *conn).await.unwrap();
        assert!(sessions::unserved(&mut conn, &[]).await.unwrap().is_empty(), "{again}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_new_connection_supersedes_the_old_one(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = connected(&mut tx, "b", LINUX).await;
    queued(&mut tx, LINUX).await;
    sessions::request(&mut tx, &request(id, "c-b", 4, 9)).await.unwrap();
    let second = node(&mut tx, "node-2").await;
    sessions::open(&mut tx, id, "c-2", &second, &[target(LINUX)]).await.unwrap();
    assert!(sessions::waiting(&mut tx, 10, &[]).await.unwrap().is_empty(), "it has not asked yet");
    assert!(sessions::request(&mut tx, &request(id, "c-2", 1, 1)).await.unwrap(), "its numbers start over");
    assert_eq!(sessions::node_of(&mut tx, id).await.unwrap().as_deref(), Some("node-2"));
    assert!(!sessions::close(&mut tx, "c-b").await.unwrap(), "the old one's end is no news");
    assert!(sessions::close(&mut tx, "c-2").await.unwrap());
    assert_eq!(sessions::node_of(&mut tx, id).await.unwrap(), None);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_slot_of_a_lost_assignment_is_given_back(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, lost, attempt) = a_job_in_flight(&mut conn).await;
    queued(&mut conn, LINUX).await;
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    assert_eq!(sessions::give_back(&mut conn, &[gone(id, lost, attempt, false)]).await.unwrap(), 1);
    assert_eq!(
        sessions::give_back(&mut conn, &[gone(id, lost, attempt, false)]).await.unwrap(),
        0,
        "once is enough"
    );
    assert_eq!(free_slots(&mut conn).await, [1]);
}

/// Its node may be dead, or not hear of jobs: what is assigned to it would be lost.
#[sqlx::test(migrations = "../migrations")]
async fn a_builder_whose_node_is_silent_does_not_wait(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    queued(&mut conn, LINUX).await;
    sessions::request(&mut conn, &request(id, "c-b", 1, 1)).await.unwrap();
    silence(&mut conn, "node-1").await;
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    let run = node(&mut conn, "node-1").await;
    assert_eq!(free_slots(&mut conn).await, [1]);
    // A node of an earlier version marks each session.
    sqlx::query("UPDATE builder_sessions SET epoch = NULL, seen_at = now()")
        .execute(&mut *conn)
        .await
        .unwrap();
    silence(&mut conn, &run.name).await;
    assert_eq!(free_slots(&mut conn).await, [1]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_run_that_drains_is_given_nothing_more(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, crossing, attempt) = a_job_in_flight(&mut conn).await;
    queued(&mut conn, LINUX).await;
    sessions::request(&mut conn, &request(id, "c-b", 2, 2)).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [1]);
    let run = Run { name: "node-1".into(), epoch: 1 };
    let other = Run { epoch: 2, ..run.clone() };
    sessions::hold_back(&mut conn, &other).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [1], "another run's sessions");
    sessions::hold_back(&mut conn, &run).await.unwrap();
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    assert!(!sessions::request(&mut conn, &request(id, "c-b", 2, 3)).await.unwrap(), "it was on its way");
    assert_eq!(sessions::give_back(&mut conn, &[gone(id, crossing, attempt, false)]).await.unwrap(), 0);
    assert_eq!(free_slots(&mut conn).await, [0; 0]);
    sessions::open(&mut conn, id, "c-new", &run, &[target(LINUX)]).await.unwrap();
    assert!(sessions::request(&mut conn, &request(id, "c-new", 1, 1)).await.unwrap());
    assert_eq!(free_slots(&mut conn).await, [1], "a new connection starts over");
}

//! Builders that end one attempt after the other badly.

use crate::support::{LINUX, connected, job, lease, node, target, version};
use cratemill_protocol::{Attempt, BuilderId, JobId, VersionId, builder::JobRef, bus::BuildRequest};
use cratemill_store::{PgConnection, PgPool, builders, faults, queue, sessions};

/// Whether a job that is queued now would be a builder's.
async fn is_served(conn: &mut PgConnection, other: VersionId) -> bool {
    queue::enqueue(conn, &job(other)).await.unwrap();
    let waiting = sessions::waiting(conn, 1, &[]).await.unwrap();
    queue::withdraw(conn, other).await.unwrap();
    !waiting.is_empty()
}

/// The pause is over.
async fn wait_out(conn: &mut PgConnection, builder: BuilderId) {
    end_pause(conn, builder, 0).await;
}

async fn end_pause(conn: &mut PgConnection, builder: BuilderId, in_hours: i32) {
    let end =
        "UPDATE builder_faults SET paused_until = now() + make_interval(hours => $2) WHERE builder_id = $1";
    sqlx::query(end).bind(builder.0).bind(in_hours).execute(conn).await.unwrap();
}

/// A builder that is logged in and waits, and a version to build.
async fn waiting(conn: &mut PgConnection) -> (BuilderId, VersionId) {
    let id = connected(conn, "b", LINUX).await;
    let version = version(conn, "queued").await;
    let request = BuildRequest {
        builder: id,
        connection: "c-b".into(),
        node: "node-1".into(),
        targets: vec![],
        slots: 200,
        answered: Vec::<JobRef>::new(),
        serial: 1,
    };
    sessions::request(conn, &request).await.unwrap();
    (id, version)
}

/// A job that the builder has been assigned just now.
async fn assigned(conn: &mut PgConnection, id: BuilderId, version: VersionId) -> (JobId, Attempt) {
    // Out of the way of the others, of which there may be one at a time.
    sqlx::query("UPDATE leases SET features = job_id::text").execute(&mut *conn).await.unwrap();
    queue::enqueue(conn, &job(version)).await.unwrap();
    lease(conn, id, 60).await
}

/// It takes a job that is assigned now, and fails.
async fn fails(conn: &mut PgConnection, id: BuilderId, version: VersionId) -> Option<f64> {
    let (job, attempt) = assigned(conn, id, version).await;
    assert!(queue::accept(conn, job, attempt, id, 60).await.unwrap());
    faults::note(conn, job, attempt).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn pauses_grow_until_an_attempt_ends_well(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, version) = waiting(&mut conn).await;
    let other = self::version(&mut conn, "other").await;
    let mut in_hand = Vec::new();
    for _ in 0..3 {
        in_hand.push(assigned(&mut conn, id, version).await);
    }
    for _ in 0..2 {
        assert_eq!(fails(&mut conn, id, version).await, None);
    }
    assert!(is_served(&mut conn, other).await, "once or twice is no habit");
    for expected in [10.0, 20.0, 40.0] {
        assert_eq!(fails(&mut conn, id, version).await, Some(expected));
        assert!(builders::find(&mut conn, id).await.unwrap().unwrap().paused_until.is_some());
        // Not before this has looked, however slow the machine is.
        end_pause(&mut conn, id, 1).await;
        assert!(!is_served(&mut conn, other).await);
        wait_out(&mut conn, id).await;
        assert!(is_served(&mut conn, other).await);
    }
    for (job, attempt) in in_hand {
        let pause = faults::note(&mut conn, job, attempt).await.unwrap();
        assert_eq!(pause, None, "what it had in hand then is no new incident");
    }
    for _ in 0..20 {
        wait_out(&mut conn, id).await;
        assert!(fails(&mut conn, id, version).await.unwrap() <= 3_600.0);
    }
    faults::forget(&mut conn, &[id]).await.unwrap();
    assert_eq!(builders::find(&mut conn, id).await.unwrap().unwrap().paused_until, None);
    assert_eq!(fails(&mut conn, id, version).await, None, "it begins anew");

    // What was long ago does not count.
    for _ in 0..2 {
        sqlx::query("UPDATE builder_faults SET last_at = now() - interval '1 day', faults = 9")
            .execute(&mut *conn)
            .await
            .unwrap();
        assert_eq!(fails(&mut conn, id, version).await, None);
    }
}

async fn noted(conn: &mut PgConnection) -> i32 {
    let faults: Option<i32> =
        sqlx::query_scalar("SELECT faults FROM builder_faults").fetch_optional(conn).await.unwrap();
    faults.unwrap_or(0)
}

/// It loses its network once, with all that it has.
#[sqlx::test(migrations = "../migrations")]
async fn what_ends_together_counts_once(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, version) = waiting(&mut conn).await;
    let mut in_hand = Vec::new();
    for _ in 0..4 {
        let (job, attempt) = assigned(&mut conn, id, version).await;
        assert!(queue::accept(&mut conn, job, attempt, id, 60).await.unwrap());
        in_hand.push((job, attempt));
    }
    for (job, attempt) in in_hand {
        assert_eq!(faults::note(&mut conn, job, attempt).await.unwrap(), None);
    }
    assert_eq!(noted(&mut conn).await, 1);
}

/// What never got to the builder says nothing of it; what it had and did not take does.
#[sqlx::test(migrations = "../migrations")]
async fn what_never_reached_the_builder_does_not_count(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (id, version) = waiting(&mut conn).await;
    for lost in [
        "UPDATE nodes SET seen_at = now() - interval '14 s'",
        "UPDATE nodes SET seen_at = now(); UPDATE builder_sessions SET connected_at = now()",
        "DELETE FROM builder_sessions",
    ] {
        let (job, attempt) = assigned(&mut conn, id, version).await;
        sqlx::raw_sql(lost).execute(&mut *conn).await.unwrap();
        faults::note(&mut conn, job, attempt).await.unwrap();
        assert_eq!(noted(&mut conn).await, 0, "{lost}");
    }
    let run = node(&mut conn, "node-1").await;
    sessions::open(&mut conn, id, "c-again", &run, &[target(LINUX)]).await.unwrap();
    let (job, attempt) = assigned(&mut conn, id, version).await;
    faults::note(&mut conn, job, attempt).await.unwrap();
    assert_eq!(noted(&mut conn).await, 1, "it had the job, and did not take it");
}

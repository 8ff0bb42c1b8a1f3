//! Estimates: from the crate itself, else from what is usual, and never without a reason.

use crate::support::{LINUX, connected, job, version};
use cratemill_protocol::{JobId, VersionId, builder::JobRef, bus::BuildRequest};
use cratemill_store::{
    PgConnection, PgPool,
    estimates::{self, Estimate},
    jobs, queue, sessions,
};

async fn queued(conn: &mut PgConnection, version: VersionId) -> JobId {
    queue::enqueue(conn, &job(version)).await.unwrap().id()
}

/// A job of the version that was built at the first try, in so many seconds.
async fn built(conn: &mut PgConnection, version: VersionId, seconds: f64) {
    let id = queued(conn, version).await;
    sqlx::query(
        "WITH gone AS (DELETE FROM queue WHERE job_id = $1 RETURNING *)
         INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries, started_at, finished_at)
         SELECT job_id, 'succeeded', priority, run_at, 1, 0, now() - make_interval(secs => $2), now() FROM gone",
    )
    .bind(id.0)
    .bind(seconds)
    .execute(conn)
    .await
    .unwrap();
}

async fn estimate(conn: &mut PgConnection, id: JobId) -> Option<Estimate> {
    let job = jobs::find(conn, id).await.unwrap().unwrap();
    estimates::of(conn, &job).await.unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crate_is_like_itself_and_else_like_others(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let (known, other, new) =
        (version(&mut tx, "known").await, version(&mut tx, "other").await, version(&mut tx, "new").await);
    let first = queued(&mut tx, new).await;
    assert_eq!(estimate(&mut tx, first).await, None, "nothing was ever built, and nobody builds");

    for seconds in [10.0, 30.0, 20.0] {
        built(&mut tx, known, seconds).await;
    }
    for _ in 0..4 {
        built(&mut tx, other, 300.0).await;
    }
    let second = queued(&mut tx, known).await;
    let takes = async |conn: &mut PgConnection, id| estimate(conn, id).await.unwrap().takes_s;
    assert_eq!(takes(&mut tx, second).await, Some(20.0));
    assert_eq!(takes(&mut tx, first).await, Some(300.0));
    assert_eq!(estimate(&mut tx, second).await.unwrap().starts_in_s, None, "nobody builds for the target");

    // One builder with one slot: the first begins at once, the second after it.
    let id = connected(&mut tx, "b", LINUX).await;
    let request = BuildRequest {
        builder: id,
        connection: "c-b".into(),
        node: "node-1".into(),
        targets: vec![],
        slots: 1,
        answered: Vec::<JobRef>::new(),
        serial: 1,
    };
    sessions::request(&mut tx, &request).await.unwrap();
    assert_eq!(estimate(&mut tx, first).await.unwrap().starts_in_s, Some(0.0));
    assert_eq!(estimate(&mut tx, second).await.unwrap().starts_in_s, Some(300.0));

    let next = queue::candidates(&mut tx, &[LINUX.into()], 1).await.unwrap();
    assert_eq!(next[0].id, first);
    queue::assign(&mut tx, &[(&next[0], id)], 60).await.unwrap();
    let running = estimate(&mut tx, first).await.unwrap();
    assert_eq!(running, Estimate { starts_in_s: None, takes_s: Some(300.0) });
    queue::cancel(&mut tx, second).await.unwrap();
    assert_eq!(estimate(&mut tx, second).await, None, "it has ended");
}

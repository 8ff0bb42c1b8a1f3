//! Artifacts and the uploads they come from.

use crate::support::{LINUX, Running, job, lease, lose, record, running, succeed, target};
use cratemill_protocol::{Attempt, Features, JobId, Kind};
use cratemill_store::{
    PgConnection, PgPool,
    artifacts::{self, Signed},
    builders, queue,
    uploads::{self, Upload},
};
use time::{Duration, OffsetDateTime};

async fn publish(conn: &mut PgConnection, running: &Running, files: &[Upload]) {
    let held = running.held(conn).await;
    let keys = builders::keys(conn, running.builder).await.unwrap();
    let signed = Signed { manifest: "{}", signature: "sig", key_id: keys[0].0 };
    artifacts::publish(conn, &held, files, signed).await.unwrap();
    succeed(conn, &held).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_newer_build_takes_the_place_of_the_older(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let first = running(&mut tx, "a").await;
    let files = [record(&mut tx, &first, "one").await, record(&mut tx, &first, "two").await];
    publish(&mut tx, &first, &files).await;
    let listed = artifacts::of_version(&mut tx, first.version).await.unwrap();
    assert_eq!(
        listed.iter().map(|a| (a.name.as_str(), a.position)).collect::<Vec<_>>(),
        [("one", 0), ("two", 1)]
    );
    let (linux, default) = (target(LINUX), Features::default());
    let served =
        artifacts::served(&mut tx, first.version, &linux, Kind::Tarball, &default).await.unwrap().unwrap();
    let proof = artifacts::proof(&mut tx, served.id).await.unwrap();
    assert_eq!(
        (served.name.as_str(), proof.manifest.as_str(), proof.signature.as_str()),
        ("one", "{}", "sig")
    );
    assert!(
        artifacts::served(&mut tx, first.version, &linux, Kind::Debian, &default).await.unwrap().is_none()
    );

    queue::enqueue(&mut tx, &job(first.version)).await.unwrap();
    let (job, attempt) = lease(&mut tx, first.builder, 60).await;
    assert!(queue::accept(&mut tx, job, attempt, first.builder, 60).await.unwrap());
    let again = Running { job, attempt, ..first };
    let file = record(&mut tx, &again, "one").await;
    publish(&mut tx, &again, &[file]).await;
    let listed = artifacts::of_version(&mut tx, again.version).await.unwrap();
    assert_eq!((listed.len(), listed[0].job_id), (1, job.0));
}

#[sqlx::test(migrations = "../migrations")]
async fn an_upload_again_replaces_the_record(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let running = running(&mut tx, "a").await;
    record(&mut tx, &running, "one").await;
    let other = Upload { size: 99, object: "o/other".into(), ..crate::support::upload("one") };
    assert!(uploads::record(&mut tx, running.job, running.attempt, &other).await.unwrap());
    let stored = uploads::of_attempt(&mut tx, running.job, running.attempt).await.unwrap();
    assert_eq!((stored.len(), stored[0].size, stored[0].object.as_str()), (1, 99, "o/other"));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_became_no_artifact_is_an_orphan(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let good = running(&mut tx, "good").await;
    let file = record(&mut tx, &good, "kept").await;
    record(&mut tx, &good, "extra").await;
    publish(&mut tx, &good, &[file]).await;
    let bad = running(&mut tx, "bad").await;
    record(&mut tx, &bad, "left").await;
    let left: Vec<String> =
        sqlx::query_scalar("SELECT name FROM uploads ORDER BY name").fetch_all(&mut *tx).await.unwrap();
    assert_eq!(left, ["extra", "left"], "what is published is an upload no more");
    let later = OffsetDateTime::now_utc() + Duration::hours(1);
    let first = (JobId(0), Attempt(0), "");
    let names = |orphans: &[uploads::Orphan]| orphans.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
    let orphans = uploads::orphans(&mut tx, later, first, 10).await.unwrap();
    assert_eq!(names(&orphans), ["extra"], "the other still runs");

    let held = bad.held(&mut tx).await;
    lose(&mut tx, &held, 0.0).await;
    let hour_ago = OffsetDateTime::now_utc() - Duration::hours(1);
    assert!(uploads::orphans(&mut tx, hour_ago, first, 10).await.unwrap().is_empty());
    let page = uploads::orphans(&mut tx, later, first, 1).await.unwrap();
    assert_eq!(names(&page), ["extra"]);
    let after = (page[0].job, page[0].attempt, &*page[0].name);
    let rest = uploads::orphans(&mut tx, later, after, 10).await.unwrap();
    assert_eq!(names(&rest), ["left"]);
    for orphan in page.iter().chain(&rest) {
        uploads::forget(&mut tx, orphan).await.unwrap();
    }
    assert!(uploads::orphans(&mut tx, later, first, 10).await.unwrap().is_empty());
}

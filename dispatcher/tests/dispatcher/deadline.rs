//! Heartbeats keep a lease, but not for longer than a job may take.

use crate::support::{Builder, LINUX, Work};
use cratemill_dispatcher::{deadline, rescue};
use cratemill_protocol::{JobState, Kind};
use cratemill_store::{PgPool, jobs, queue};

const WALL_S: u32 = 1_800;

#[sqlx::test(migrations = "../migrations")]
async fn a_builder_that_never_ends_a_job_loses_it(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let builder = Builder::connect(&mut conn, 1).await;
    let work = Work::start(&pool, &builder, Kind::Tarball, LINUX).await;
    let attempts = [(work.job, work.attempt)];
    let accepted = "UPDATE leases SET accepted_at = now() - make_interval(secs => $1::int)";
    for (ago_s, ended, state) in [(2_300, 0, JobState::Running), (2_500, 1, JobState::Queued)] {
        sqlx::query(accepted).bind(ago_s).execute(&mut *conn).await.unwrap();
        let renewed = queue::renew(&mut conn, builder.id, &attempts, 60).await.unwrap();
        assert_eq!((renewed.len(), rescue::expire_leases(&pool).await.unwrap()), (1, 0), "the lease is good");
        assert_eq!(deadline::end_overdue(&pool, WALL_S).await.unwrap(), ended);
        assert_eq!(jobs::find(&mut conn, work.job).await.unwrap().unwrap().state, state);
    }
    let job = jobs::find(&mut conn, work.job).await.unwrap().unwrap();
    assert_eq!(job.failure_class.as_deref(), Some("lost"));
    assert!(queue::renew(&mut conn, builder.id, &attempts, 60).await.unwrap().is_empty());
}

//! Damage to rows.

use super::world::World;
use cratemill_store::PgPool;

/// (the check, the damage)
const DAMAGE: &[(&str, &str)] = &[
    ("jobs", "UPDATE finished_jobs SET attempt = 3 WHERE job_id = FAILED"),
    ("jobs", "UPDATE finished_jobs SET failure_class = 'timeout' WHERE job_id = FAILED"),
    ("jobs", "UPDATE finished_jobs SET result = NULL WHERE job_id = FAILED"),
    ("jobs", "UPDATE attempts SET result = 'succeeded' WHERE job_id = FAILED"),
    // An attempt that another one followed is the newest too, or is newer than that.
    ("jobs", "UPDATE attempts SET attempt = 2 WHERE job_id = FAILED"),
    ("jobs", "UPDATE attempts SET attempt = 7 WHERE job_id = FAILED"),
    ("jobs", "DELETE FROM attempts WHERE job_id = FAILED"),
    ("jobs", "UPDATE queue SET attempt = 1"),
    // Lost, and in two places at once.
    ("jobs", "DELETE FROM queue"),
    ("jobs", "UPDATE queue SET job_id = FAILED"),
    ("jobs", "UPDATE queue SET job_id = RUNNING"),
    (
        "jobs",
        "INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries) \
         SELECT job_id, 'cancelled', priority, run_at, attempt, tries FROM leases",
    ),
    // Never asked for, or as something else.
    ("jobs", "DELETE FROM jobs WHERE id = FAILED"),
    ("jobs", "DELETE FROM jobs WHERE id = RUNNING"),
    ("jobs", "DELETE FROM jobs WHERE id NOT IN (GOOD, FAILED, RUNNING)"),
    ("jobs", "INSERT INTO attempts (job_id, attempt, builder_id, result) VALUES (999, 1, 1, 'lost')"),
    ("jobs", "UPDATE leases SET features = 'no-default'"),
    ("jobs", "UPDATE queue SET target = 'any'"),
    (
        "doubled-jobs",
        "UPDATE queue SET kind = 'rustdoc'; \
         UPDATE jobs SET kind = 'rustdoc' WHERE id IN (SELECT job_id FROM queue)",
    ),
    ("final-events", "UPDATE finished_jobs SET state = 'cancelled' WHERE job_id = FAILED"),
    ("leases", "UPDATE leases SET lease_until = now() - interval '3 minutes'"),
    ("cancels", "UPDATE leases SET cancel_requested_at = now() - interval '6 minutes'"),
    (
        "waiting-jobs",
        "UPDATE queue SET run_at = now() - interval '1 hour'; \
         UPDATE nodes SET seen_at = now(); \
         UPDATE builder_sessions SET slots = 1, requested_at = now() - interval '6 minutes'",
    ),
    ("waiting-jobs", "UPDATE queue SET turn = NULL, run_at = now() - interval '6 minutes'"),
    (
        "sessions",
        "UPDATE builder_sessions SET slots = -1, requested_at = now() - interval '6 minutes' WHERE builder_id = 1",
    ),
    ("sessions", "UPDATE nodes SET seen_at = now() - interval '6 minutes'"),
    (
        "sessions",
        "UPDATE builder_sessions SET in_flight = '{GOOD.1}', requested_at = now() - interval '6 minutes' WHERE builder_id = 1",
    ),
    (
        "sessions",
        "UPDATE builder_sessions SET in_flight = '{RUNNING.9}', requested_at = now() - interval '6 minutes' WHERE builder_id = 2",
    ),
    (
        "outbox",
        "INSERT INTO outbox (subjects, payloads, created_at) VALUES ('{event.queue}', '{\"\"}', now() - interval '1 hour')",
    ),
    (
        "unarchived-logs",
        "UPDATE attempts SET log_object = NULL, ended_at = now() - interval '1 hour' WHERE job_id = FAILED",
    ),
    (
        "unarchived-logs",
        "UPDATE finished_jobs SET log_object = NULL, finished_at = now() - interval '1 hour' WHERE job_id = FAILED",
    ),
    (
        "leftovers",
        "UPDATE finished_jobs SET finished_at = now() - interval '3 hours' WHERE job_id = FAILED; \
         INSERT INTO uploads VALUES (FAILED, 2, 'x', 1, repeat('0', 64), 'o', now() - interval '4 hours')",
    ),
    (
        "late-uploads",
        "INSERT INTO uploads VALUES (FAILED, 1, 'x', 1, repeat('0', 64), 'o', now() + interval '6 seconds')",
    ),
    (
        "downloads",
        "UPDATE download_counts SET count = 0; UPDATE download_days SET count = 0; UPDATE download_sums SET count = 0",
    ),
    (
        "downloads",
        "UPDATE download_counts SET count = -5; UPDATE download_days SET count = -5; UPDATE download_sums SET count = -5",
    ),
    (
        "downloads",
        "SELECT make_download_month('2001-01-01'); UPDATE download_counts SET day = '2001-01-01'; \
         UPDATE download_days SET day = '2001-01-01'; UPDATE download_sums SET day = '2001-01-01'",
    ),
    (
        "downloads",
        "SELECT make_download_month(current_date + 3); UPDATE download_counts SET day = day + 3; \
         UPDATE download_days SET day = day + 3; UPDATE download_sums SET day = day + 3",
    ),
    ("download-sums", "UPDATE download_counts SET count = count + 1"),
    ("download-sums", "UPDATE download_days SET count = count + 1"),
    ("download-sums", "UPDATE download_sums SET count = count + 1 WHERE axis = 'target'"),
    ("download-sums", "DELETE FROM download_sums WHERE axis = 'client'"),
    ("download-sums", "DELETE FROM download_counts; DELETE FROM download_days"),
    ("download-batches", "UPDATE download_batches SET ahead = '{1,1}'"),
    ("download-batches", "UPDATE download_batches SET ahead = '{3,3}', seen_at = now() - interval '1 hour'"),
    ("current-artifacts", "UPDATE artifacts SET replaced_at = now()"),
    ("current-artifacts", "UPDATE artifacts SET replaced_at = now() WHERE position = 1"),
];

#[sqlx::test(migrations = "../migrations")]
async fn rows_that_cannot_be_are_found(pool: PgPool) {
    let world = World::live(pool).await;
    assert_eq!(world.found(&[]).await, [""; 0], "{}", world.audit(&[]).await);
    for (check, sql) in DAMAGE {
        world.damage(check, sql).await;
    }
    assert_eq!(world.found(&[]).await, [""; 0]);
}

/// What is on its way is as it should be, for as long as it takes.
#[sqlx::test(migrations = "../migrations")]
async fn what_is_on_its_way_is_no_damage(pool: PgPool) {
    let world = World::live(pool).await;
    for sql in [
        "UPDATE leases SET lease_until = now() - interval '10 seconds'",
        "UPDATE leases SET cancel_requested_at = now() - interval '10 seconds'",
        "UPDATE queue SET run_at = now() - interval '1 hour'",
        "UPDATE nodes SET seen_at = now()",
        "UPDATE builder_sessions SET slots = 1, requested_at = now()",
        "INSERT INTO outbox (subjects, payloads) VALUES ('{event.queue}', '{\"\"}')",
        "UPDATE download_batches SET ahead = '{3,3}'",
        "UPDATE builder_sessions SET slots = -1 WHERE builder_id = 1",
        "UPDATE builder_sessions SET in_flight = '{1.99}' WHERE builder_id = 2",
    ] {
        sqlx::raw_sql(sql).execute(&world.pool).await.unwrap();
    }
    assert_eq!(world.found(&[]).await, [""; 0]);
    let demanding = world.found(&["--at-rest"]).await;
    assert_eq!(demanding, ["open-jobs", "outbox", "sessions", "download-batches"]);
}

/// Narrowed to a job, only what is wrong with that job is said.
#[sqlx::test(migrations = "../migrations")]
async fn a_job_is_looked_at_alone(pool: PgPool) {
    let world = World::live(pool).await;
    sqlx::query("UPDATE finished_jobs SET failure_class = 'timeout' WHERE job_id = $1")
        .bind(world.failed.0)
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE download_counts SET count = 0").execute(&world.pool).await.unwrap();
    let of = async |job| world.audit(&[&format!("--job={job}")]).await;
    assert_eq!(of(world.good).await.found, 0);
    let report = of(world.failed).await;
    let jobs = &report.checks[0];
    assert_eq!((report.found, jobs.name, jobs.looked_at), (1, "jobs", 1), "{report}");
    assert!(jobs.shown[0].contains("failed (timeout) after build"), "{report}");
}

//! Files that attempts have put into the object store, verified, and not yet visible to anybody. What is published becomes
//! an artifact and leaves.

use cratemill_protocol::{ArtifactName, Attempt, JobId, Sha256Hex};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Upload {
    #[sqlx(try_from = "String")]
    pub name: ArtifactName,
    pub size: i64,
    #[sqlx(try_from = "String")]
    pub sha256: Sha256Hex,
    pub object: String,
}

/// Records a stored file; false if the attempt no longer has the job. The same name again replaces the record.
pub async fn record(
    conn: &mut PgConnection,
    job: JobId,
    attempt: Attempt,
    upload: &Upload,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "INSERT INTO uploads (job_id, attempt, name, size, sha256, object)
         SELECT job_id, attempt, $3, $4, $5, $6 FROM leases WHERE job_id = $1 AND attempt = $2 FOR SHARE
         ON CONFLICT (job_id, attempt, name) DO UPDATE
             SET size = excluded.size, sha256 = excluded.sha256, object = excluded.object, stored_at = now()",
    )
    .bind(job.0)
    .bind(attempt.0)
    .bind(&*upload.name)
    .bind(upload.size)
    .bind(upload.sha256.to_string())
    .bind(&upload.object)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether this attempt may upload now.
pub async fn allowed(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM leases WHERE job_id = $1 AND attempt = $2)")
        .bind(job.0)
        .bind(attempt.0)
        .fetch_one(conn)
        .await
}

pub async fn of_attempt(conn: &mut PgConnection, job: JobId, attempt: Attempt) -> sqlx::Result<Vec<Upload>> {
    sqlx::query_as(
        "SELECT name, size, sha256, object FROM uploads WHERE job_id = $1 AND attempt = $2 ORDER BY name",
    )
    .bind(job.0)
    .bind(attempt.0)
    .fetch_all(conn)
    .await
}

/// An upload that became no artifact, of an attempt that ended before `before`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Orphan {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub job: JobId,
    #[sqlx(try_from = "i32")]
    pub attempt: Attempt,
    pub name: String,
    pub object: String,
}

/// The next of them after that attempt's file of that name. Looks at each upload alone: few stay for longer than their
/// attempt, and of attempts there are as many as there ever were.
pub async fn orphans(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    (job, attempt, name): (JobId, Attempt, &str),
    limit: i64,
) -> sqlx::Result<Vec<Orphan>> {
    sqlx::query_as(
        "SELECT u.job_id, u.attempt, u.name, u.object
         FROM uploads u CROSS JOIN LATERAL (
             SELECT ended_at FROM all_attempts WHERE job_id = u.job_id AND attempt = u.attempt LIMIT 1) a
         WHERE a.ended_at < $1 AND (u.job_id, u.attempt, u.name) > ($2, $3, $4)
           AND NOT EXISTS (SELECT FROM artifacts r WHERE r.job_id = u.job_id AND r.attempt = u.attempt AND r.name = u.name)
         ORDER BY u.job_id, u.attempt, u.name LIMIT $5",
    )
    .bind(before)
    .bind(job.0)
    .bind(attempt.0)
    .bind(name)
    .bind(limit)
    .fetch_all(conn)
    .await
}

pub async fn forget(conn: &mut PgConnection, orphan: &Orphan) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM uploads WHERE job_id = $1 AND attempt = $2 AND name = $3")
        .bind(orphan.job.0)
        .bind(orphan.attempt.0)
        .bind(&orphan.name)
        .execute(conn)
        .await?;
    Ok(())
}

//! What is queued: many versions of many crates, so that crates take turns as they do.

use anyhow::Result;
use cratemill_protocol::{Features, Kind, Priority, Target, VersionId};
use cratemill_store::queue::NewJob;
use sqlx::PgPool;

/// Crates with as many versions each as it takes.
const CRATES: i64 = 500;

/// Makes so many versions, one crate after the other in turn, and returns a job for each.
pub(super) async fn fill(pool: &PgPool, prefix: &str, jobs: usize) -> Result<Vec<NewJob>> {
    sqlx::query(
        "INSERT INTO crates (name, canonical) SELECT name, name FROM
             (SELECT $1 || '_' || n AS name FROM generate_series(1, $2) n) AS names",
    )
    .bind(prefix)
    .bind(CRATES)
    .execute(pool)
    .await?;
    let ids: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO versions (crate_id, version, sha256)
         SELECT c.id, '1.' || n || '.0', encode(sha256(convert_to(c.name || n, 'UTF8')), 'hex')
         FROM generate_series(1, $3) n, crates c WHERE c.name LIKE $1 || '\\_%' ORDER BY n, c.id LIMIT $2 RETURNING id",
    )
    .bind(prefix)
    .bind(i64::try_from(jobs)?)
    .bind(i64::try_from(jobs)? / CRATES + 1)
    .fetch_all(pool)
    .await?;
    sqlx::query("ANALYZE crates, versions").execute(pool).await?;
    Ok(ids.into_iter().map(job).collect())
}

fn job(version: i64) -> NewJob {
    NewJob {
        version: VersionId(version),
        kind: Kind::Metadata,
        target: Target::any(),
        features: Features::default(),
        priority: Priority::NewRelease,
        run_at: None,
        parent: None,
    }
}

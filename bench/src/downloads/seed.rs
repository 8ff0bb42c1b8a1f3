//! Artifacts to download, ten of a crate (five versions for two targets), as rows: nobody follows a redirect here, so that no object is behind them.

use anyhow::{Context, Result};
use cratemill_protocol::ArtifactId;
use sqlx::{AssertSqlSafe, PgConnection};

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
const VERSIONS: i32 = 5;

/// What leads to an artifact elsewhere, jobs and uploads, nobody reads on the way of a download.
const SEED: &str = "
    WITH b AS (INSERT INTO builders (name) VALUES ('bench') RETURNING id),
         k AS (INSERT INTO builder_keys (builder_id, fingerprint, public_key) SELECT id, 'bench', 'none' FROM b
               RETURNING id),
         c AS (INSERT INTO crates (name, canonical, checked_at)
               SELECT 'bench-' || n, 'bench_' || n, now() FROM generate_series(1, $1) n RETURNING id, name),
         v AS (INSERT INTO versions (crate_id, version, sha256)
               SELECT id, '1.' || n || '.0', repeat('0', 64) FROM c, generate_series(0, $3 - 1) n
               RETURNING id, crate_id, version),
         a AS (INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256,
                                      object, manifest, signature, builder_key_id)
               SELECT v.id, 'tarball', t, 'default', v.id, 1, 0, c.name || '-' || t || '-v' || v.version || '.tar.gz',
                      1000000, repeat('0', 64),
                      'artifacts/' || v.id || '/1/' || c.name || '-' || t || '-v' || v.version || '.tar.gz', '', '', k.id
               FROM v JOIN c ON c.id = v.crate_id CROSS JOIN k CROSS JOIN unnest($2::text[]) t
               RETURNING id, version_id, target)
    SELECT a.id, c.name, v.version, a.target FROM a JOIN v ON v.id = a.version_id JOIN c ON c.id = v.crate_id
    ORDER BY a.id LIMIT $4";

#[derive(Debug, Clone)]
pub(super) struct Artifact {
    pub(super) id: ArtifactId,
    /// Of the download route.
    pub(super) path: String,
}

/// Once in a database.
pub(super) async fn artifacts(conn: &mut PgConnection, count: u32) -> Result<Vec<Artifact>> {
    let of_a_crate = u32::try_from(VERSIONS)? * u32::try_from(TARGETS.len())?;
    let rows: Vec<(i64, String, String, String)> = sqlx::query_as(SEED)
        .bind(i32::try_from(count.div_ceil(of_a_crate))?)
        .bind(TARGETS)
        .bind(VERSIONS)
        .bind(i64::from(count))
        .fetch_all(&mut *conn)
        .await
        .context("cannot seed artifacts")?;
    for table in ["crates", "versions", "artifacts"] {
        sqlx::query(AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut *conn).await?;
    }
    let artifact = |(id, name, version, target)| Artifact {
        id: ArtifactId(id),
        path: format!("/api/v1/crates/{name}/{version}/{target}/tarball"),
    };
    Ok(rows.into_iter().map(artifact).collect())
}

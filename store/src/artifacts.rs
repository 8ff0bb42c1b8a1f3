//! Artifacts: files that are stored, verified, signed for and listed.

use crate::{queue::Held, uploads::Upload};
use cratemill_protocol::{ArtifactId, CrateName, Features, Kind, Sha256Hex, Target, VersionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Artifact {
    #[sqlx(try_from = "i64")]
    pub id: ArtifactId,
    #[sqlx(rename = "crate_name", try_from = "String")]
    pub krate: CrateName,
    pub version: String,
    pub yanked: bool,
    pub blocked: bool,
    #[sqlx(try_from = "String")]
    pub kind: Kind,
    #[sqlx(try_from = "String")]
    pub target: Target,
    #[sqlx(try_from = "String")]
    pub features: Features,
    pub position: i16,
    pub name: String,
    pub size: i64,
    #[sqlx(try_from = "String")]
    pub sha256: Sha256Hex,
    pub object: String,
    pub manifest: String,
    pub signature: String,
    pub created_at: OffsetDateTime,
    pub job_id: i64,
    pub attempt: i32,
    pub downloads: i64,
}

/// What an artifact row takes beside its upload.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    pub manifest: &'a str,
    pub signature: &'a str,
    pub key_id: i64,
}

/// Lists the files of a held job, in the manifest's order, and takes the place of what an earlier build made. They are
/// uploads no more.
pub async fn publish(
    conn: &mut PgConnection,
    held: &Held,
    files: &[Upload],
    signed: Signed<'_>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE artifacts SET replaced_at = now()
         WHERE version_id = $1 AND kind = $2 AND target = $3 AND features = $4 AND replaced_at IS NULL",
    )
    .bind(held.version.0)
    .bind(held.kind.as_str())
    .bind(&*held.target)
    .bind(held.features.to_string())
    .execute(&mut *conn)
    .await?;
    for (position, file) in (0_i16..).zip(files) {
        sqlx::query(
            "INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256,
                                    object, manifest, signature, builder_key_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(held.version.0)
        .bind(held.kind.as_str())
        .bind(&*held.target)
        .bind(held.features.to_string())
        .bind(held.id.0)
        .bind(held.attempt.0)
        .bind(position)
        .bind(&*file.name)
        .bind(file.size)
        .bind(file.sha256.to_string())
        .bind(&file.object)
        .bind(signed.manifest)
        .bind(signed.signature)
        .bind(signed.key_id)
        .execute(&mut *conn)
        .await?;
    }
    sqlx::query("DELETE FROM uploads WHERE job_id = $1 AND attempt = $2 AND name = ANY($3)")
        .bind(held.id.0)
        .bind(held.attempt.0)
        .bind(files.iter().map(|file| &*file.name).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(())
}

/// All current artifacts of a version.
pub async fn of_version(conn: &mut PgConnection, version: VersionId) -> sqlx::Result<Vec<Artifact>> {
    sqlx::query_as(
        "SELECT a.id, c.name AS crate_name, v.version, v.yanked, v.blocked, a.kind, a.target, a.features, a.position,
                a.name, a.size, a.sha256, a.object, a.manifest, a.signature, a.created_at, a.job_id, a.attempt,
                coalesce((SELECT sum(d.count)::bigint FROM download_counts d WHERE d.artifact_id = a.id), 0) AS downloads
         FROM artifacts a JOIN versions v ON v.id = a.version_id JOIN crates c ON c.id = v.crate_id
         WHERE a.version_id = $1 AND a.replaced_at IS NULL
         ORDER BY a.kind, a.target, a.features, a.position",
    )
    .bind(version.0)
    .fetch_all(conn)
    .await
}

/// What a download needs of its artifact.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Served {
    #[sqlx(try_from = "i64")]
    pub id: ArtifactId,
    pub name: String,
    pub size: i64,
    #[sqlx(try_from = "String")]
    pub sha256: Sha256Hex,
    pub object: String,
}

/// The first file of the current build.
pub async fn served(
    conn: &mut PgConnection,
    version: VersionId,
    target: &Target,
    kind: Kind,
    features: &Features,
) -> sqlx::Result<Option<Served>> {
    sqlx::query_as(
        "SELECT id, name, size, sha256, object FROM artifacts
         WHERE version_id = $1 AND target = $2 AND kind = $3 AND features = $4 AND replaced_at IS NULL
         ORDER BY position LIMIT 1",
    )
    .bind(version.0)
    .bind(&**target)
    .bind(kind.as_str())
    .bind(features.to_string())
    .fetch_optional(conn)
    .await
}

/// What shows who built an artifact, of what.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Proof {
    pub manifest: String,
    pub signature: String,
}

/// Of an artifact that there is; what was replaced keeps its own.
pub async fn proof(conn: &mut PgConnection, artifact: ArtifactId) -> sqlx::Result<Proof> {
    sqlx::query_as("SELECT manifest, signature FROM artifacts WHERE id = $1")
        .bind(artifact.0)
        .fetch_one(conn)
        .await
}

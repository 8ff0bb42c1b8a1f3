//! Versions of crates.

use cratemill_protocol::{CrateId, CrateName, Sha256Hex, VersionId};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Version {
    #[sqlx(try_from = "i64")]
    pub id: VersionId,
    #[sqlx(rename = "name", try_from = "String")]
    pub krate: CrateName,
    pub version: String,
    #[sqlx(try_from = "String")]
    pub sha256: Sha256Hex,
    pub yanked: bool,
    pub blocked: bool,
    pub seen_at: OffsetDateTime,
}

/// What the registry says about a version.
#[derive(Debug, Clone)]
pub struct Published {
    pub version: String,
    pub sha256: Sha256Hex,
    pub yanked: bool,
}

/// What a registry's answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added(VersionId),
    Yanked(VersionId),
    Unyanked(VersionId),
}

pub async fn of_crate(conn: &mut PgConnection, krate: CrateId) -> sqlx::Result<Vec<Version>> {
    sqlx::query_as(
        "SELECT v.id, c.name, v.version, v.sha256, v.yanked, v.blocked, v.seen_at
         FROM versions v JOIN crates c ON c.id = v.crate_id WHERE v.crate_id = $1 ORDER BY v.id",
    )
    .bind(krate.0)
    .fetch_all(conn)
    .await
}

pub async fn find(
    conn: &mut PgConnection,
    krate: &CrateName,
    version: &str,
) -> sqlx::Result<Option<Version>> {
    sqlx::query_as(
        "SELECT v.id, c.name, v.version, v.sha256, v.yanked, v.blocked, v.seen_at
         FROM versions v JOIN crates c ON c.id = v.crate_id WHERE c.canonical = $1 AND v.version = $2",
    )
    .bind(krate.canonical())
    .bind(version)
    .fetch_optional(conn)
    .await
}

/// Whether nothing is to be built of this version any more. Its row stays locked: whoever withdraws it waits for what the
/// transaction queues, and finds it.
pub async fn is_withdrawn(conn: &mut PgConnection, version: VersionId) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT yanked OR blocked FROM versions WHERE id = $1 FOR SHARE")
        .bind(version.0)
        .fetch_one(conn)
        .await
}

/// Brings the versions of a crate to what the registry says, in its order. The checksum of a version never changes:
/// where the registry's does, ours stays, and the caller finds the difference among what [`of_crate`] says.
pub async fn merge(
    conn: &mut PgConnection,
    krate: CrateId,
    published: &[Published],
) -> sqlx::Result<Vec<(Change, String)>> {
    let names: Vec<&str> = published.iter().map(|p| p.version.as_str()).collect();
    let sums: Vec<String> = published.iter().map(|p| p.sha256.to_string()).collect();
    let yanks: Vec<bool> = published.iter().map(|p| p.yanked).collect();
    let toggled: Vec<(i64, String, bool)> = sqlx::query_as(
        "UPDATE versions v SET yanked = p.yanked
         FROM unnest($2::text[], $3::bool[]) AS p (version, yanked)
         WHERE v.crate_id = $1 AND v.version = p.version AND v.yanked <> p.yanked
         RETURNING v.id, v.version, v.yanked",
    )
    .bind(krate.0)
    .bind(&names)
    .bind(&yanks)
    .fetch_all(&mut *conn)
    .await?;
    let added: Vec<(i64, String)> = sqlx::query_as(
        "INSERT INTO versions (crate_id, version, sha256, yanked)
         SELECT $1, p.version, p.sha256, p.yanked
         FROM unnest($2::text[], $3::text[], $4::bool[]) WITH ORDINALITY AS p (version, sha256, yanked, n) ORDER BY n
         ON CONFLICT (crate_id, version) DO NOTHING RETURNING id, version",
    )
    .bind(krate.0)
    .bind(&names)
    .bind(&sums)
    .bind(&yanks)
    .fetch_all(conn)
    .await?;
    let toggled = toggled.into_iter().map(|(id, version, yanked)| {
        let id = VersionId(id);
        (if yanked { Change::Yanked(id) } else { Change::Unyanked(id) }, version)
    });
    Ok(toggled
        .chain(added.into_iter().map(|(id, version)| (Change::Added(VersionId(id)), version)))
        .collect())
}

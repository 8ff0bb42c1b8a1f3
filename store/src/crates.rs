//! Crates, and what the registry said about each when it was last asked.

use cratemill_protocol::{CrateId, CrateName};
use sqlx::PgConnection;
use time::OffsetDateTime;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Crate {
    #[sqlx(try_from = "i64")]
    pub id: CrateId,
    #[sqlx(try_from = "String")]
    pub name: CrateName,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    pub checked_at: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
}

/// Names that differ only in case or in `-` and `_` find the same crate, as in a registry.
pub async fn find(conn: &mut PgConnection, name: &CrateName) -> sqlx::Result<Option<Crate>> {
    sqlx::query_as(
        "SELECT id, name, etag, last_modified, checked_at, created_at FROM crates WHERE canonical = $1",
    )
    .bind(name.canonical())
    .fetch_optional(conn)
    .await
}

/// Adds the crate, or finds it, and locks its row until the transaction ends: one refresh of a crate at a time.
pub async fn upsert(conn: &mut PgConnection, name: &CrateName) -> sqlx::Result<Crate> {
    sqlx::query_as(
        "INSERT INTO crates (name, canonical) VALUES ($1, $2)
         ON CONFLICT (canonical) DO UPDATE SET name = crates.name
         RETURNING id, name, etag, last_modified, checked_at, created_at",
    )
    .bind(&**name)
    .bind(name.canonical())
    .fetch_one(conn)
    .await
}

/// Remembers the validators of the index entry that was just read.
pub async fn checked(
    conn: &mut PgConnection,
    id: CrateId,
    etag: Option<&str>,
    last_modified: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE crates SET etag = $2, last_modified = $3, checked_at = now() WHERE id = $1")
        .bind(id.0)
        .bind(etag)
        .bind(last_modified)
        .execute(conn)
        .await?;
    Ok(())
}

/// A page of crates by name, after `after`, those that contain `query`.
pub async fn page(
    conn: &mut PgConnection,
    query: &str,
    after: Option<&str>,
    limit: i64,
) -> sqlx::Result<Vec<Crate>> {
    sqlx::query_as(
        "SELECT id, name, etag, last_modified, checked_at, created_at FROM crates
         WHERE canonical > coalesce($2, '') AND ($1 = '' OR position($1 in canonical) > 0)
         ORDER BY canonical LIMIT $3",
    )
    .bind(query.to_ascii_lowercase().replace('-', "_"))
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

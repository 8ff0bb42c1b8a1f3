//! Builders, the keys they log in with, and the targets they may build for.

use crate::nodes;
use cratemill_protocol::{BuilderId, Target};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// A builder as operators and the public see it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Builder {
    #[sqlx(try_from = "i64")]
    pub id: BuilderId,
    pub name: String,
    pub enabled: bool,
    pub drain: bool,
    pub created_at: OffsetDateTime,
    /// While it is connected, when its node last said that it lives.
    pub last_seen_at: Option<OffsetDateTime>,
    pub targets: Vec<String>,
    /// Of its enabled keys, the newest first.
    pub fingerprints: Vec<String>,
    /// The newest enabled key, one line.
    pub public_key: Option<String>,
    pub connected: bool,
    /// Jobs it works on.
    pub running: i64,
    /// Until then it gets no job: too many ended badly.
    pub paused_until: Option<OffsetDateTime>,
}

/// What a login needs to know about the key that asks.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Login {
    #[sqlx(try_from = "i64")]
    pub builder: BuilderId,
    pub name: String,
    pub key_id: i64,
    pub public_key: String,
    /// Both the builder and this key.
    pub enabled: bool,
    pub drain: bool,
    pub targets: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("a builder with this name exists")]
    Name,
    #[error("this key belongs to a builder already")]
    Key,
    #[error("this service does not build for the target {0}")]
    Target(String),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

pub async fn register(
    conn: &mut PgConnection,
    name: &str,
    fingerprint: &str,
    public_key: &str,
    targets: &[Target],
) -> Result<BuilderId, RegisterError> {
    let id: i64 = sqlx::query_scalar("INSERT INTO builders (name) VALUES ($1) RETURNING id")
        .bind(name)
        .fetch_one(&mut *conn)
        .await
        .map_err(|error| unique(error, RegisterError::Name))?;
    sqlx::query("INSERT INTO builder_keys (builder_id, fingerprint, public_key) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(fingerprint)
        .bind(public_key)
        .execute(&mut *conn)
        .await
        .map_err(|error| unique(error, RegisterError::Key))?;
    for target in targets {
        let added = sqlx::query(
            "INSERT INTO builder_targets (builder_id, target) SELECT $1, name FROM targets WHERE name = $2
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(&**target)
        .execute(&mut *conn)
        .await?;
        if added.rows_affected() == 0 && !crate::targets::is_enabled(conn, target).await? {
            return Err(RegisterError::Target(target.to_string()));
        }
    }
    Ok(BuilderId(id))
}

fn unique(error: sqlx::Error, taken: RegisterError) -> RegisterError {
    match &error {
        sqlx::Error::Database(inner) if inner.is_unique_violation() => taken,
        _ => RegisterError::Database(error),
    }
}

/// The key with this fingerprint, whoever's it is.
pub async fn login(conn: &mut PgConnection, fingerprint: &str) -> sqlx::Result<Option<Login>> {
    sqlx::query_as(
        "SELECT b.id AS builder, b.name, k.id AS key_id, k.public_key, b.enabled AND k.enabled AS enabled, b.drain,
                ARRAY(SELECT t.target FROM builder_targets t JOIN targets g ON g.name = t.target
                      WHERE t.builder_id = b.id AND g.enabled ORDER BY 1) AS targets
         FROM builder_keys k JOIN builders b ON b.id = k.builder_id WHERE k.fingerprint = $1",
    )
    .bind(fingerprint)
    .fetch_optional(conn)
    .await
}

/// The enabled keys of a builder that is enabled, the newest first: a manifest must verify with one of them.
pub async fn keys(conn: &mut PgConnection, builder: BuilderId) -> sqlx::Result<Vec<(i64, String)>> {
    sqlx::query_as(
        "SELECT k.id, k.public_key FROM builder_keys k JOIN builders b ON b.id = k.builder_id
         WHERE k.builder_id = $1 AND k.enabled AND b.enabled ORDER BY k.id DESC",
    )
    .bind(builder.0)
    .fetch_all(conn)
    .await
}

const SELECT_BUILDERS: &str = "
    SELECT b.id, b.name, b.enabled, b.drain, b.created_at,
           greatest(b.last_seen_at, (SELECT n.seen_at FROM builder_sessions s
                                     JOIN nodes n ON n.name = s.node AND n.epoch = s.epoch
                                     WHERE s.builder_id = b.id)) AS last_seen_at,
           ARRAY(SELECT t.target FROM builder_targets t WHERE t.builder_id = b.id ORDER BY 1) AS targets,
           ARRAY(SELECT k.fingerprint FROM builder_keys k WHERE k.builder_id = b.id AND k.enabled ORDER BY k.id DESC)
               AS fingerprints,
           (SELECT k.public_key FROM builder_keys k WHERE k.builder_id = b.id AND k.enabled ORDER BY k.id DESC LIMIT 1)
               AS public_key,
           EXISTS (SELECT FROM builder_sessions s WHERE s.builder_id = b.id) AS connected,
           (SELECT count(*) FROM leases l WHERE l.builder_id = b.id) AS running,
           (SELECT f.paused_until FROM builder_faults f WHERE f.builder_id = b.id AND f.paused_until > now()) AS paused_until
    FROM builders b
    WHERE ($1::bigint IS NULL OR b.id = $1) AND b.id > $2 ORDER BY b.id LIMIT $3";

pub async fn find(conn: &mut PgConnection, id: BuilderId) -> sqlx::Result<Option<Builder>> {
    sqlx::query_as(SELECT_BUILDERS).bind(id.0).bind(0_i64).bind(1_i64).fetch_optional(conn).await
}

pub async fn page(conn: &mut PgConnection, after: i64, limit: i64) -> sqlx::Result<Vec<Builder>> {
    sqlx::query_as(SELECT_BUILDERS).bind(None::<i64>).bind(after).bind(limit).fetch_all(conn).await
}

/// Changes what is given, and has the node that holds its connection look; false if there is no such builder.
pub async fn update(
    conn: &mut PgConnection,
    id: BuilderId,
    enabled: Option<bool>,
    drain: Option<bool>,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE builders SET enabled = coalesce($2, enabled), drain = coalesce($3, drain) WHERE id = $1",
    )
    .bind(id.0)
    .bind(enabled)
    .bind(drain)
    .execute(&mut *conn)
    .await?;
    nodes::changed(conn, id).await?;
    Ok(done.rows_affected() == 1)
}

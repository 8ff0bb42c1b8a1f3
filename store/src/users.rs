//! Users of the event API.

use cratemill_protocol::{CollectionId, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct User {
    #[sqlx(try_from = "Uuid")]
    pub id: UserId,
    pub password_hash: String,
    #[sqlx(try_from = "Uuid")]
    pub collection_id: CollectionId,
}

/// False if somebody has the name already.
pub async fn add(conn: &mut PgConnection, username: &str, user: &User) -> sqlx::Result<bool> {
    let added = sqlx::query(
        "INSERT INTO users (id, username, password_hash, collection_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (username) DO NOTHING",
    )
    .bind(user.id.0)
    .bind(username)
    .bind(&user.password_hash)
    .bind(user.collection_id.0)
    .execute(conn)
    .await?;
    Ok(added.rows_affected() == 1)
}

pub async fn is_taken(conn: &mut PgConnection, username: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM users WHERE username = $1)")
        .bind(username)
        .fetch_one(conn)
        .await
}

pub async fn named(conn: &mut PgConnection, username: &str) -> sqlx::Result<Option<User>> {
    sqlx::query_as("SELECT id, password_hash, collection_id FROM users WHERE username = $1")
        .bind(username)
        .fetch_optional(conn)
        .await
}

/// The collection that the user has named as its own; nothing if there is no such user any more.
pub async fn collection(conn: &mut PgConnection, user: UserId) -> sqlx::Result<Option<CollectionId>> {
    let id: Option<Uuid> = sqlx::query_scalar("SELECT collection_id FROM users WHERE id = $1")
        .bind(user.0)
        .fetch_optional(conn)
        .await?;
    Ok(id.map(CollectionId))
}

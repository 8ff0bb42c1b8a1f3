//! The catalogue's generation: a number that changes when a version is yanked or blocked, or no longer is, in the same
//! transaction (`migrations/0012_catalogue.sql`). Who remembers what it read of artifacts asks for it.

use sqlx::PgConnection;

pub async fn generation(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT generation FROM catalogue").fetch_one(conn).await
}

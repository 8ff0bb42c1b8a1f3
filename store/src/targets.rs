//! The target triples that this service builds for.

use cratemill_protocol::Target;
use sqlx::PgConnection;

/// Adds targets that are not known yet, enabled; one that an operator disabled stays so.
pub async fn ensure(conn: &mut PgConnection, targets: &[Target]) -> sqlx::Result<()> {
    let names: Vec<&str> = targets.iter().map(|target| &**target).collect();
    sqlx::query(
        "INSERT INTO targets (name) SELECT DISTINCT unnest($1::text[]) ORDER BY 1 ON CONFLICT DO NOTHING",
    )
    .bind(names)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn enabled(conn: &mut PgConnection) -> sqlx::Result<Vec<Target>> {
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM targets WHERE enabled ORDER BY name").fetch_all(conn).await?;
    names
        .into_iter()
        .map(|name| Target::parse(name).map_err(|error| sqlx::Error::Decode(error.into())))
        .collect()
}

pub async fn is_enabled(conn: &mut PgConnection, target: &Target) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM targets WHERE name = $1 AND enabled)")
        .bind(&**target)
        .fetch_one(conn)
        .await
}

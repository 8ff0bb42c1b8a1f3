//! Which days are dumped, and what was counted of them then.

use sqlx::PgConnection;
use time::Date;

/// Days with counts that are in no dump, the oldest first; today is not over.
pub async fn due(conn: &mut PgConnection, from: Date, before: Date) -> sqlx::Result<Vec<Date>> {
    sqlx::query_scalar(
        "SELECT c.day FROM (SELECT day, sum(count)::bigint AS count FROM download_days
                            WHERE day >= $1 AND day < $2 GROUP BY day) c
         LEFT JOIN download_dumps d ON d.day = c.day WHERE d.count IS DISTINCT FROM c.count ORDER BY c.day",
    )
    .bind(from)
    .bind(before)
    .fetch_all(conn)
    .await
}

/// False if another dispatcher is at it; one that died had a quarter of an hour.
pub async fn claim(conn: &mut PgConnection, day: Date) -> sqlx::Result<bool> {
    let claimed = sqlx::query(
        "INSERT INTO download_dumps AS d (day, claimed_at) VALUES ($1, now())
         ON CONFLICT (day) DO UPDATE SET claimed_at = now()
         WHERE d.claimed_at IS NULL OR d.claimed_at < now() - interval '15 minutes'",
    )
    .bind(day)
    .execute(conn)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

/// All downloads of the day, as of now.
pub async fn count(conn: &mut PgConnection, day: Date) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT coalesce(sum(count), 0)::bigint FROM download_days WHERE day = $1")
        .bind(day)
        .fetch_one(conn)
        .await
}

/// Nobody is at it any more, and it is not done.
pub async fn release(conn: &mut PgConnection, day: Date) -> sqlx::Result<()> {
    sqlx::query("UPDATE download_dumps SET claimed_at = NULL WHERE day = $1")
        .bind(day)
        .execute(conn)
        .await
        .map(drop)
}

/// Notes what the dump has, and that nobody is at it any more.
pub async fn done(conn: &mut PgConnection, day: Date, count: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE download_dumps SET count = $2, dumped_at = now(), claimed_at = NULL WHERE day = $1")
        .bind(day)
        .bind(count)
        .execute(conn)
        .await
        .map(drop)
}

//! Builders' sessions that say what cannot be, that should be over, or that wait for what is there.

use super::Found;
use sqlx::PgConnection;

/// When a session's node last said that it lives: the only place where the audit spells it.
macro_rules! seen_at {
    () => {
        "coalesce((SELECT n.seen_at FROM nodes n WHERE n.name = s.node AND n.epoch = s.epoch), s.seen_at)"
    };
}

/// Jobs that have been due for so many seconds, while a builder that could take them, and was not held back, has waited
/// for as long.
pub async fn passed_over(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'job ' || q.job_id AS what, extract(epoch FROM now() - q.run_at)::float8 AS age_s,
                q.run_at <= now() - make_interval(secs => $1) AND q.target IN (
                    SELECT unnest(s.targets || 'any'::text)
                    FROM builder_sessions s JOIN builders b ON b.id = s.builder_id
                    WHERE s.slots > 0 AND s.requested_at <= now() - make_interval(secs => $1)
                      AND ",
        seen_at!(),
        " > now() - interval '15 s' AND b.enabled AND NOT b.drain
                      AND NOT EXISTS (SELECT FROM builder_faults f WHERE f.builder_id = b.id
                                      AND f.paused_until > now() - make_interval(secs => $1))) AS bad
         FROM queue q WHERE q.turn IS NOT NULL"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}

/// Sessions that have waited for less than no job for so many seconds. For a moment that is right: a builder asks for
/// fewer jobs than are on their way to it; its next request makes up for it.
pub async fn overdrawn(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'builder ' || builder_id AS what, extract(epoch FROM now() - requested_at)::float8 AS age_s,
                slots < 0 AND requested_at <= now() - make_interval(secs => $1) AS bad
         FROM builder_sessions"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}

/// Sessions whose node has not said for so many seconds that it lives.
pub async fn silent(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'builder ' || s.builder_id AS what, extract(epoch FROM now() - ",
        seen_at!(),
        ")::float8 AS age_s, ",
        seen_at!(),
        " <= now() - make_interval(secs => $1) AS bad
         FROM builder_sessions s"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}

/// Attempts that ended or never were, and that sessions have had on their way to builders for so many seconds. For a moment
/// that is right: the builder's next request says that it took the attempt, and the attempt may have ended by then.
pub async fn in_flight_ended(conn: &mut PgConnection, after_s: f64) -> sqlx::Result<Found> {
    sqlx::query_as(found!(
        "SELECT 'builder ' || s.builder_id || ', attempt ' || f.name AS what,
                extract(epoch FROM now() - s.requested_at)::float8 AS age_s,
                l.job_id IS NULL AND s.requested_at <= now() - make_interval(secs => $1) AS bad
         FROM builder_sessions s CROSS JOIN unnest(s.in_flight) AS f (name)
         LEFT JOIN leases l ON l.job_id = split_part(f.name, '.', 1)::bigint
             AND l.attempt = split_part(f.name, '.', 2)::integer AND l.builder_id = s.builder_id"
    ))
    .bind(after_s)
    .fetch_one(conn)
    .await
}

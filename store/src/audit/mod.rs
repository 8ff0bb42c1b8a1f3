//! What an audit reads. Nothing here changes anything. Jobs, artifacts and logs come in pages, so that no answer grows
//! with the database; of rows that should not be there the database counts all and names a few.

/// All attempts, wherever they are: the only place where the audit spells it.
macro_rules! attempts {
    () => {
        "all_attempts"
    };
}

/// The attempt of a job by its number, at the right of a join. By the limit it is looked for one at a time, by the indexes
/// of the tables: joined as it is, the view would be read whole for each page.
macro_rules! attempt {
    ($job:literal, $number:literal) => {
        concat!(
            " LATERAL (SELECT * FROM ",
            attempts!(),
            " WHERE job_id = ",
            $job,
            " AND attempt = ",
            $number,
            " LIMIT 1) a ON true "
        )
    };
}

/// A query that yields (`what`, `age_s`, `bad`) for each thing that it looks at, summed up as [`Found`].
macro_rules! found {
    ($($seen:expr),+ $(,)?) => {
        concat!(
            "WITH seen AS MATERIALIZED (", $($seen),+, "),
                  first AS (SELECT what, age_s FROM seen WHERE bad ORDER BY age_s DESC, what LIMIT 20)
             SELECT (SELECT count(*) FROM seen) AS looked_at, (SELECT count(*) FROM seen WHERE bad) AS found,
                    ARRAY(SELECT what FROM first) AS what, ARRAY(SELECT age_s FROM first) AS age_s"
        )
    };
}

/// The rows of `$from`, each called `$what`; bad are those that something should have moved on within `$1` seconds of
/// their `$since`.
macro_rules! overdue {
    ($what:literal, $since:literal, $($from:expr),+ $(,)?) => {
        found!(
            concat!(
                "SELECT ", $what, " AS what, extract(epoch FROM now() - ", $since, ")::float8 AS age_s, ",
                $since, " <= now() - make_interval(secs => $1) AS bad FROM "
            ),
            $($from),+
        )
    };
}

pub mod artifacts;
pub mod downloads;
pub mod jobs;
pub mod logs;
pub mod queue;
pub mod sessions;
pub mod uploads;

use cratemill_protocol::JobId;
use sqlx::PgConnection;
use time::OffsetDateTime;

/// What an audit is narrowed to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope {
    pub job: Option<JobId>,
    /// What ended before is left out.
    pub since: Option<OffsetDateTime>,
}

/// How many things were looked at, how many are wrong, and the oldest of these.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Found {
    pub looked_at: i64,
    pub found: i64,
    what: Vec<String>,
    age_s: Vec<f64>,
}

impl Found {
    /// The name of each, and for how many seconds it has been so.
    pub fn rows(&self) -> impl Iterator<Item = (&str, f64)> {
        self.what.iter().map(String::as_str).zip(self.age_s.iter().copied())
    }
}

/// A page of the ids of jobs that a table knows. Of a job whose end cannot be found it is not known that it was before
/// `since`, so it counts.
macro_rules! ids {
    ($table:literal, $id:literal) => {
        concat!(
            "(SELECT DISTINCT ",
            $id,
            " AS id FROM ",
            $table,
            "
              WHERE ",
            $id,
            " > $1 AND ($2::bigint IS NULL OR ",
            $id,
            " = $2)
                AND ($3::timestamptz IS NULL
                     OR coalesce((SELECT f.finished_at >= $3 FROM finished_jobs f WHERE f.job_id = ",
            $table,
            ".",
            $id,
            "),
                                 true))
              ORDER BY 1 LIMIT $4)"
        )
    };
}

/// The next jobs after `after`, by id: those that were asked for, and those that only another table knows, by mistake.
pub async fn job_ids(
    conn: &mut PgConnection,
    scope: Scope,
    after: JobId,
    limit: i64,
) -> sqlx::Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(concat!(
        "SELECT id FROM (",
        ids!("jobs", "id"),
        " UNION ",
        ids!("queue", "job_id"),
        " UNION ",
        ids!("leases", "job_id"),
        " UNION ",
        ids!("finished_jobs", "job_id"),
        " UNION ",
        ids!("attempts", "job_id"),
        ") AS known ORDER BY id LIMIT $4"
    ))
    .bind(after.0)
    .bind(scope.job.map(|job| job.0))
    .bind(scope.since)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(JobId).collect())
}

fn numbers(jobs: &[JobId]) -> Vec<i64> {
    jobs.iter().map(|job| job.0).collect()
}

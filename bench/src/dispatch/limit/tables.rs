//! Tables with no more than what is measured, and rows of the size of ours.

use anyhow::Result;
use cratemill_protocol::{CrateName, JobId, subjects};
use sqlx::{PgConnection, PgPool};

pub(super) async fn make(pool: &PgPool) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE bare (id bigint PRIMARY KEY, attempt integer NOT NULL, builder bigint, lease_until timestamptz,
                            krate text NOT NULL, version text NOT NULL, sha256 text NOT NULL, kind text NOT NULL,
                            target text NOT NULL, features text NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE ended (id bigint PRIMARY KEY, attempt integer NOT NULL, builder bigint, lease_until timestamptz,
                             ended_at timestamptz NOT NULL DEFAULT now(), result text NOT NULL);
         CREATE TABLE said (id bigserial PRIMARY KEY, subjects text[] NOT NULL, payloads bytea[] NOT NULL);
         ALTER TABLE said ALTER subjects SET COMPRESSION lz4, ALTER payloads SET COMPRESSION lz4;
         CREATE TABLE builder (id bigint PRIMARY KEY, slots integer NOT NULL, asked bigint NOT NULL)
             WITH (fillfactor = 50);
         CREATE INDEX ON builder (asked);
         INSERT INTO builder SELECT n, 1000000, n FROM generate_series(1, 1000) n",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// In the order of their one index.
pub(super) async fn fill(pool: &PgPool, jobs: usize) -> Result<()> {
    insert(&mut *pool.acquire().await?, 1, jobs).await?;
    sqlx::query("ANALYZE bare").execute(pool).await?;
    Ok(())
}

pub(super) async fn insert(conn: &mut PgConnection, first: usize, jobs: usize) -> Result<()> {
    sqlx::query(
        "INSERT INTO bare SELECT n, 0, NULL, NULL, 'crate_' || n % 500, '1.' || n || '.0',
                encode(sha256(n::text::bytea), 'hex'), 'metadata', 'any', 'default' FROM generate_series($1, $2) n",
    )
    .bind(i64::try_from(first)?)
    .bind(i64::try_from(first + jobs)? - 1)
    .execute(conn)
    .await?;
    Ok(())
}

/// An event of each job.
pub(super) async fn say(conn: &mut PgConnection, jobs: usize) -> Result<()> {
    let subjects = (0..jobs).map(subject).collect::<Result<Vec<_>>>()?;
    let payloads: Vec<_> = (0..jobs).map(event).collect();
    sqlx::query("INSERT INTO said (subjects, payloads) VALUES ($1, $2)")
        .bind(subjects)
        .bind(payloads)
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) fn subject(n: usize) -> Result<String> {
    let krate = CrateName::parse(format!("crate_{}", n % 500))?;
    Ok(subjects::job_event(&krate, JobId(i64::try_from(n)?)))
}

/// As long as ours, and as alike: it is stored compressed.
pub(super) fn event(n: usize) -> Vec<u8> {
    let (krate, builder) = (n % 500, n % 1_000);
    format!(
        r#"{{"at_ms":1700000000000,"event":{{"type":"job","job":{n},"krate":"crate_{krate}","version":"1.{n}.0","kind":"metadata","target":"any","features":"default","priority":"new_release","attempt":1,"state":"assigned","builder":{builder}}}}}"#
    )
    .into_bytes()
}

//! Bus messages that belong to a transaction: written with it, published after it, in order, by one process at a time.

use crate::database::{Channel, notify};
use cratemill_protocol::{
    BuilderId, bus,
    bus::{BuilderState, DomainEvent, EventMessage, JobChanged, VersionChanged},
    subjects,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// What one transaction has to say, in order.
#[derive(Debug, sqlx::FromRow)]
pub struct Entry {
    pub id: i64,
    pub subjects: Vec<String>,
    /// As many as subjects.
    pub payloads: Vec<Vec<u8>>,
}

/// Nobody is notified of these: Postgres commits transactions that notify one after the other, each with its own wait for
/// the disk, and every step of every job is one. Who has committed wakes the relay: [`subjects::OUTBOX`].
pub(crate) async fn jobs_changed(
    conn: &mut PgConnection,
    jobs: impl IntoIterator<Item = JobChanged>,
) -> sqlx::Result<()> {
    let (subjects, payloads) = encode_jobs(jobs);
    if !subjects.is_empty() {
        sqlx::query("INSERT INTO outbox (subjects, payloads) VALUES ($1, $2)")
            .bind(subjects)
            .bind(payloads)
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Of jobs that wait now, which the dispatchers are told with the commit.
pub(crate) async fn jobs_queued(conn: &mut PgConnection, jobs: Vec<JobChanged>) -> sqlx::Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (subjects, payloads) = encode_jobs(jobs);
    insert_and_notify(conn, (subjects, payloads), Channel::Jobs).await
}

/// For who writes them with a statement of its own.
pub(crate) fn encode_jobs(jobs: impl IntoIterator<Item = JobChanged>) -> (Vec<String>, Vec<Vec<u8>>) {
    encode(jobs.into_iter().map(|job| (subjects::job_event(&job.krate, job.job), DomainEvent::Job(job))))
}

pub async fn version_changed(conn: &mut PgConnection, version: VersionChanged) -> sqlx::Result<()> {
    let subject = subjects::version_event(&version.krate, version.id);
    push(conn, vec![(subject, DomainEvent::Version(version))]).await
}

pub async fn builder_changed(
    conn: &mut PgConnection,
    builder: BuilderId,
    name: &str,
    state: BuilderState,
) -> sqlx::Result<()> {
    let event = DomainEvent::Builder { builder, name: name.to_owned(), state };
    push(conn, vec![(subjects::builder_event(builder), event)]).await
}

/// The same change of many builders, in one statement. An entry each: there may be thousands, and an entry is published at
/// once.
pub async fn builders_changed(
    conn: &mut PgConnection,
    builders: &[(BuilderId, String)],
    state: BuilderState,
) -> sqlx::Result<()> {
    let event = |(builder, name): &(BuilderId, String)| {
        (
            subjects::builder_event(*builder),
            DomainEvent::Builder { builder: *builder, name: name.clone(), state },
        )
    };
    let (subjects, payloads) = encode(builders.iter().map(event));
    sqlx::query(
        "INSERT INTO outbox (subjects, payloads)
         SELECT ARRAY[subject], ARRAY[payload] FROM unnest($1::text[], $2::bytea[]) AS e (subject, payload)",
    )
    .bind(subjects)
    .bind(payloads)
    .execute(&mut *conn)
    .await?;
    notify(conn, Channel::Outbox).await
}

pub async fn queue_changed(conn: &mut PgConnection, queued: u64, running: u64) -> sqlx::Result<()> {
    push(conn, vec![(subjects::QUEUE_EVENT.to_owned(), DomainEvent::Queue { queued, running })]).await
}

async fn push(conn: &mut PgConnection, events: Vec<(String, DomainEvent)>) -> sqlx::Result<()> {
    insert_and_notify(conn, encode(events), Channel::Outbox).await
}

async fn insert_and_notify(
    conn: &mut PgConnection,
    (subjects, payloads): (Vec<String>, Vec<Vec<u8>>),
    channel: Channel,
) -> sqlx::Result<()> {
    sqlx::query(
        "WITH said AS (INSERT INTO outbox (subjects, payloads) VALUES ($1, $2)) SELECT pg_notify($3, '')",
    )
    .bind(subjects)
    .bind(payloads)
    .bind(channel.name())
    .execute(conn)
    .await?;
    Ok(())
}

fn encode(events: impl IntoIterator<Item = (String, DomainEvent)>) -> (Vec<String>, Vec<Vec<u8>>) {
    let at_ms =
        i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
    events.into_iter().map(|(subject, event)| (subject, bus::encode(&EventMessage { at_ms, event }))).unzip()
}

/// The oldest entries. The caller holds [`crate::database::Alone::Outbox`].
pub async fn oldest(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as("SELECT id, subjects, payloads FROM outbox ORDER BY id LIMIT $1")
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// The transaction commits without a wait for the disk: what a crash of the server brings back is published again, with the
/// same ids, as after a crash of the relay.
pub async fn delete(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query(
        "DELETE FROM outbox
         WHERE id = ANY($1) AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'",
    )
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

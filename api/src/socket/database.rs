//! What a builder's session reads from and writes to Postgres, and how much of a log the bus has.

use super::{
    Sockets,
    effects::{Input, Opened, Renewed},
};
use anyhow::Context as _;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use cratemill_protocol::{
    Attempt, BuilderId, JobId, Stage, Target,
    builder::{JobRef, Resume, Resumed},
    bus::{self, BuilderState, LogMessage},
    subjects,
    token::{Claims, Purpose, Token},
};
use cratemill_service::clock;
use cratemill_store::{
    PgPool, builders,
    builders::Login,
    outbox, queue,
    sessions::{self, OpenError},
};

/// A token outlives its lease by so much, so that an upload that began in time can end.
const TOKEN_GRACE_S: i64 = 30;

pub(super) async fn find_key(pool: &PgPool, fingerprint: &str) -> anyhow::Result<Option<Login>> {
    Ok(builders::login(&mut *pool.acquire().await?, fingerprint).await?)
}

/// Records the session and answers what the builder wants to resume; a builder that was just disabled has none.
pub(super) async fn open(
    sockets: &Sockets,
    builder: BuilderId,
    name: &str,
    connection: &str,
    targets: &[Target],
    resume: &[Resume],
) -> anyhow::Result<Input> {
    let mut tx = sockets.pool.begin().await?;
    let opened = match sessions::open(&mut tx, builder, connection, &sockets.run, targets).await {
        Ok(opened) => opened,
        Err(OpenError::Disabled) => return Ok(Input::Disabled),
        Err(error) => return Err(error.into()),
    };
    outbox::builder_changed(&mut tx, builder, name, BuilderState::Connected).await?;
    tx.commit().await?;
    let mut answers = Vec::with_capacity(resume.len());
    for Resume { job, attempt, next_seq } in resume {
        let of = JobRef { job: *job, attempt: *attempt };
        answers.push(if accept(sockets, builder, of).await? {
            // What was acknowledged the builder has forgotten, even if the bus has lost it: the archive tells of the gap.
            let (stored, text) = last_stored(sockets, of).await?;
            let stored = stored.max(next_seq.saturating_sub(1));
            let answer = Resumed::Continue {
                job: *job,
                attempt: *attempt,
                next_seq: stored + 1,
                lease_s: sockets.config.lease_s,
                token: token(sockets, of),
            };
            (answer, text)
        } else {
            (Resumed::Lost { job: *job, attempt: *attempt }, 0)
        });
    }
    let (drain, changes) = (opened.drain, opened.changes);
    Ok(Input::Opened(Box::new(Opened { resumed: answers, drain, changes })))
}

pub(super) async fn close(
    pool: &PgPool,
    builder: BuilderId,
    name: &str,
    connection: &str,
) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    if sessions::close(&mut tx, connection).await? {
        outbox::builder_changed(&mut tx, builder, name, BuilderState::Disconnected).await?;
    }
    Ok(tx.commit().await?)
}

pub(super) async fn accept(sockets: &Sockets, builder: BuilderId, job: JobRef) -> anyhow::Result<bool> {
    sockets.groups.accept(queue::Accept { job: job.job, attempt: job.attempt, builder }).await
}

pub(super) async fn set_stage(
    sockets: &Sockets,
    builder: BuilderId,
    job: JobRef,
    stage: Stage,
) -> anyhow::Result<bool> {
    let mut tx = sockets.pool.begin().await?;
    let held = queue::set_stage(&mut tx, job.job, job.attempt, builder, stage).await?;
    tx.commit().await?;
    sockets.bus.hint(subjects::OUTBOX).await;
    Ok(held)
}

/// Renews leases; an answer that says which are lost.
pub(super) async fn renew(sockets: &Sockets, builder: BuilderId, jobs: &[JobRef]) -> anyhow::Result<Input> {
    let pairs: Vec<(JobId, Attempt)> = jobs.iter().map(|job| (job.job, job.attempt)).collect();
    let mut conn = sockets.pool.acquire().await?;
    let renewed = queue::renew(&mut conn, builder, &pairs, lease(sockets)).await?;
    let of = |renewed: &queue::Renewed| JobRef { job: renewed.job, attempt: renewed.attempt };
    let held: Vec<_> = renewed.iter().map(|renewed| (of(renewed), token(sockets, of(renewed)))).collect();
    let cancelled = renewed.iter().filter(|renewed| renewed.cancel_requested).map(of).collect();
    let lost = jobs.iter().copied().filter(|job| held.iter().all(|(held, _)| held != job)).collect();
    Ok(Input::Renewed(Box::new(Renewed { held, cancelled, lost })))
}

pub(super) fn token(sockets: &Sockets, job: JobRef) -> Token {
    sockets.signer.sign(&Claims {
        job: job.job,
        attempt: job.attempt,
        purpose: Purpose::Build,
        expires: clock::now_s() + i64::from(sockets.config.lease_s) + TOKEN_GRACE_S,
    })
}

fn lease(sockets: &Sockets) -> i32 {
    i32::try_from(sockets.config.lease_s).unwrap_or(i32::MAX)
}

/// The number of the newest event of the attempt that the bus has, and where its text ends; 0 for none. Asked of the stream's leader: another
/// server may lack events that the builder knows to be stored, and has forgotten.
async fn last_stored(sockets: &Sockets, job: JobRef) -> anyhow::Result<(u64, u64)> {
    let stream = sockets.bus.jetstream.get_stream_no_info(subjects::LOGS_STREAM).await?;
    let subject = subjects::log(job.job, job.attempt);
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => {
            let last: LogMessage = bus::decode(&message.payload).context("a message of the log")?;
            Ok((last.seq, last.body.text_end()))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, 0)),
        Err(error) => Err(error.into()),
    }
}

//! One outcome, in one transaction.

use super::{
    Error,
    follow_up::{self, Binaries, MAX_METADATA_BYTES},
    reads::Reads,
    verify::{Expected, Verified, verify},
};
use crate::ending;
use cratemill_protocol::{
    ArtifactName, FailureClass, JobState, Kind, Outcome, Sha256Hex, bus::OutcomeMessage, job::Timings,
    manifest::Manifest,
};
use cratemill_store::{
    PgConnection, PgPool, artifacts,
    artifacts::Signed,
    builders, jobs, objects,
    patience::in_time,
    queue,
    queue::{Held, NewJob},
    sessions, targets, uploads,
    uploads::Upload,
    versions,
};

/// What an outcome changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The attempt no longer has the job, or it was another builder's.
    Stale,
    /// `result` is how the attempt counts, `state` what became of the job. Its builder has its slot back where it never took
    /// the job: then it waits again without asking.
    Ended { state: JobState, result: &'static str, slot_is_back: bool },
}

/// Applies an outcome, with the document that [`read`] found. After an error nothing has changed, and it can be applied
/// again.
pub async fn apply(
    pool: &PgPool,
    message: &OutcomeMessage,
    document: Option<Document>,
) -> Result<Applied, Error> {
    let mut tx = pool.begin().await?;
    let held = queue::hold(&mut tx, message.job, message.attempt).await?;
    let Some(held) = held.filter(|held| held.builder == message.builder) else { return Ok(Applied::Stale) };
    let outcome = match &message.outcome {
        Outcome::Succeeded { timings } => match succeed(&mut tx, &held, message, document).await? {
            Ok(()) => message.outcome.clone(),
            Err(why) => {
                tracing::warn!(job = %held.id, attempt = %held.attempt, builder = %held.builder, why, "a success is refused");
                refused(why, *timings)
            }
        },
        _ => ending::clean(message.outcome.clone()),
    };
    // After every lock on a job: nobody who waits for a job holds a session.
    sessions::give_back(&mut tx, &[ending::gone(&held)]).await?;
    let state = ending::end(&mut tx, &held, &outcome, Some(message.last_seq)).await?;
    tx.commit().await?;
    let result = queue::result_name(&outcome);
    Ok(Applied::Ended { state, result, slot_is_back: !held.accepted })
}

/// A success that cannot be believed tells nothing about the crate: another builder tries.
fn refused(why: String, timings: Timings) -> Outcome {
    Outcome::Failed { class: FailureClass::Infrastructure, message: why, stage: None, timings }
}

/// Publishes what was built and queues what follows; or says why it cannot be believed.
async fn succeed(
    conn: &mut PgConnection,
    held: &Held,
    message: &OutcomeMessage,
    document: Option<Document>,
) -> Result<Result<(), String>, Error> {
    let Some(expected) = expected(conn, held).await? else {
        return Ok(Err("the job's version is gone".into()));
    };
    let keys = builders::keys(conn, held.builder).await?;
    let uploaded = uploads::of_attempt(conn, held.id, held.attempt).await?;
    let (text, signature) = (message.manifest.as_deref(), message.signature.as_deref());
    let verified = match verify(text, signature, &keys, &expected, &uploaded) {
        Ok(verified) => verified,
        Err(refusal) => return Ok(Err(refusal.to_string())),
    };
    let follow_up = match held.kind {
        Kind::Metadata => match binaries(&verified, document, &expected) {
            Ok(binaries) => Some(binaries),
            Err(why) => return Ok(Err(why)),
        },
        _ => None,
    };
    let (manifest, signature) = (text.unwrap_or_default(), signature.unwrap_or_default());
    let signed = Signed { manifest, signature, key_id: verified.key_id };
    artifacts::publish(conn, held, &verified.files, signed).await?;
    if let Some(binaries) = follow_up
        && !versions::is_withdrawn(conn, held.version).await?
    {
        enqueue_tarballs(conn, held, &binaries).await?;
    }
    Ok(Ok(()))
}

async fn expected(conn: &mut PgConnection, held: &Held) -> Result<Option<Expected>, Error> {
    let Some(job) = jobs::find(conn, held.id).await? else { return Ok(None) };
    let version = versions::find(conn, &job.krate, &job.version).await?;
    Ok(version.map(|version| Expected {
        krate: job.krate,
        version: job.version,
        kind: held.kind,
        target: held.target.clone(),
        features: held.features.clone(),
        source_sha256: version.sha256,
    }))
}

/// What was stored as a `metadata` artifact, and its checksum.
#[derive(Debug)]
pub struct Document {
    upload: Upload,
    /// Or why it cannot be read.
    json: Result<bytes::Bytes, String>,
}

/// The file to be read before the outcome can be applied, where it claims to have made metadata.
pub(super) fn to_read(message: &OutcomeMessage) -> Option<ArtifactName> {
    let Outcome::Succeeded { .. } = message.outcome else { return None };
    let manifest = Manifest::parse(message.manifest.as_deref()?).ok()?;
    let mut files = manifest.artifacts.into_iter();
    files.next().filter(|_| manifest.kind == Kind::Metadata).map(|file| file.name)
}

/// Reads the metadata document that an outcome claims to have made; its claims are checked later. The object store may
/// take long: this comes before the transaction, which holds the job.
pub async fn read(pool: &PgPool, reads: &Reads, message: &OutcomeMessage) -> Result<Option<Document>, Error> {
    let Some(name) = to_read(message) else { return Ok(None) };
    let uploaded = in_time(async {
        uploads::of_attempt(&mut *pool.acquire().await?, message.job, message.attempt).await
    });
    let Some(upload) = uploaded.await?.into_iter().find(|upload| upload.name == name) else {
        return Ok(None);
    };
    if upload.size.unsigned_abs() > MAX_METADATA_BYTES {
        return Ok(Some(Document { upload, json: Err("the metadata is too long".into()) }));
    }
    let json = match reads.get(&upload.object, MAX_METADATA_BYTES).await {
        Ok(bytes) if Sha256Hex::of(&bytes) == upload.sha256 => Ok(bytes),
        Ok(_) => Err("the stored metadata is not what was uploaded".into()),
        Err(objects::Error::Unavailable(why)) => {
            return Err(Error::Objects(objects::Error::Unavailable(why)));
        }
        Err(error) => Err(error.to_string()),
    };
    Ok(Some(Document { upload, json }))
}

/// The binaries that the verified metadata document names.
fn binaries(
    verified: &Verified,
    document: Option<Document>,
    expected: &Expected,
) -> Result<Binaries, String> {
    let same = |document: &Document| {
        verified.files.first().is_some_and(|file| {
            file.object == document.upload.object && file.sha256 == document.upload.sha256
        })
    };
    let document = document.filter(same).ok_or("the metadata was not uploaded")?;
    follow_up::binaries(&document.json?, &expected.krate, &expected.version, &expected.features)
        .map_err(|error| error.to_string())
}

async fn enqueue_tarballs(conn: &mut PgConnection, held: &Held, binaries: &Binaries) -> Result<(), Error> {
    if !binaries.left_out.is_empty() {
        tracing::info!(job = %held.id, binaries = ?binaries.left_out, "binaries that want other features are left out");
    }
    if binaries.built.is_empty() {
        return Ok(());
    }
    for target in targets::enabled(conn).await? {
        let job = NewJob {
            version: held.version,
            kind: Kind::Tarball,
            target,
            features: held.features.clone(),
            priority: held.priority,
            run_at: None,
            parent: Some(held.id),
        };
        queue::enqueue(conn, &job).await?;
    }
    Ok(())
}

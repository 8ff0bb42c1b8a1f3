//! One crate brought to what the registry says: read, merged, announced, and its new versions queued.

use super::{
    Error,
    client::{Answer, Registry, Validators},
    lines,
};
use cratemill_protocol::{
    CrateName, Features, Kind, Priority, Target,
    bus::{VersionChange, VersionChanged},
};
use cratemill_store::{
    PgConnection, PgPool, crates, outbox,
    patience::in_time,
    queue,
    queue::NewJob,
    versions,
    versions::{Change, Published},
};
use std::collections::HashMap;

#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error("the database failed: {0}")]
    Database(#[from] cratemill_store::Error),
}

/// Reads the crate's index entry, if it changed since the last time, and brings the database up to date.
pub async fn refresh(pool: &PgPool, registry: &Registry, wanted: &CrateName) -> Result<(), RefreshError> {
    let known = in_time(async { crates::find(&mut *pool.acquire().await?, wanted).await }).await?;
    // The index finds an entry by the registry's own spelling only; we know it once we have seen it.
    let name = known.as_ref().map_or(wanted, |known| &known.name);
    let validators = known.as_ref().map_or_else(Validators::default, |known| Validators {
        etag: known.etag.clone(),
        last_modified: known.last_modified.clone(),
    });
    let answer = registry.entry(name, &validators).await?;
    in_time(apply(pool, wanted, name, answer)).await
}

/// One transaction.
async fn apply(
    pool: &PgPool,
    wanted: &CrateName,
    name: &CrateName,
    answer: Answer,
) -> Result<(), RefreshError> {
    let mut tx = pool.begin().await?;
    match answer {
        Answer::Unchanged => {
            let row = crates::upsert(&mut tx, name).await?;
            // Another refresh may have stored newer validators meanwhile: they stay.
            crates::checked(&mut tx, row.id, row.etag.as_deref(), row.last_modified.as_deref()).await?;
        }
        Answer::Body { bytes, validators } => {
            let entry = lines::parse(wanted, &bytes);
            if entry.malformed > 0 {
                tracing::warn!(krate = %wanted, lines = entry.malformed, "index lines that cannot be read are passed over");
            }
            // An entry without a single good line is not a crate that we can do anything with.
            let krate = entry.krate.as_ref().ok_or(Error::NotFound)?;
            merge(&mut tx, krate, &entry.versions, &validators).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn merge(
    conn: &mut PgConnection,
    krate: &CrateName,
    published: &[Published],
    validators: &Validators,
) -> Result<(), cratemill_store::Error> {
    let row = crates::upsert(conn, krate).await?;
    report_changed_sums(conn, &row, published).await?;
    let changes = versions::merge(conn, row.id, published).await?;
    crates::checked(conn, row.id, validators.etag.as_deref(), validators.last_modified.as_deref()).await?;

    // A crate seen for the first time brings its whole history: only its newest version is news, and the others are
    // built when somebody asks for them. Otherwise one popular crate would put hundreds of jobs before everybody's.
    let first = row.checked_at.is_none();
    let newest = lines::newest(published).map(|published| published.version.as_str());
    let yanked: HashMap<&str, bool> = published.iter().map(|p| (p.version.as_str(), p.yanked)).collect();
    for (change, version) in changes {
        let (id, what) = match change {
            Change::Added(id) => (id, VersionChange::Published),
            Change::Yanked(id) => (id, VersionChange::Yanked),
            Change::Unyanked(id) => (id, VersionChange::Unyanked),
        };
        if !first || newest == Some(version.as_str()) {
            let event =
                VersionChanged { krate: row.name.clone(), version: version.clone(), id, change: what };
            outbox::version_changed(conn, event).await?;
        }
        match change {
            Change::Yanked(id) => {
                queue::withdraw(conn, id).await?;
            }
            Change::Added(id) if yanked.get(version.as_str()) == Some(&false) => {
                if !first || newest == Some(version.as_str()) {
                    queue::enqueue(conn, &metadata_job(id)).await?;
                }
            }
            Change::Added(_) | Change::Unyanked(_) => {}
        }
    }
    Ok(())
}

fn metadata_job(version: cratemill_protocol::VersionId) -> NewJob {
    NewJob {
        version,
        kind: Kind::Metadata,
        target: Target::any(),
        features: Features::default(),
        priority: Priority::NewRelease,
        run_at: None,
        parent: None,
    }
}

/// The checksum of a version never changes; a registry whose does is broken or attacked, and ours stays.
async fn report_changed_sums(
    conn: &mut PgConnection,
    krate: &crates::Crate,
    published: &[Published],
) -> Result<(), cratemill_store::Error> {
    let ours = versions::of_crate(conn, krate.id).await?;
    let theirs: HashMap<&str, _> = published.iter().map(|p| (p.version.as_str(), p.sha256)).collect();
    for version in ours {
        if let Some(sum) = theirs.get(version.version.as_str()).filter(|sum| **sum != version.sha256) {
            tracing::error!(
                krate = %krate.name, version = version.version, ours = %version.sha256, theirs = %sum,
                "the registry changed the checksum of a version: the new one is ignored"
            );
        }
    }
    Ok(())
}

//! Whether each artifact is what its builder signed: the row, the manifest, the signature, the attempt and the bytes.

use super::{Auditor, OBJECTS_AT_ONCE, objects, report::Check};
use crate::outcomes::verify::{Expected, Verified, verify};
use cratemill_protocol::{Attempt, CrateName, JobId, Target};
use cratemill_store::{
    audit::artifacts::{self, File},
    objects::Objects,
    uploads::Upload,
};
use futures_util::{StreamExt, TryStreamExt};

/// Attempts whose artifacts are in memory at once: 32 files each at most, each with a manifest of up to 64 KiB.
const PAGE: i64 = 16;

pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<Check> {
    let mut check = Check::new("artifacts");
    let mut after = (JobId(0), Attempt(0));
    loop {
        let mut conn = auditor.pool.acquire().await?;
        let page = artifacts::builds(&mut conn, auditor.scope, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(check) };
        after = *last;
        let files = artifacts::of(&mut conn, &page).await?;
        drop(conn);
        for build in files.chunk_by(|a, b| (a.job, a.attempt) == (b.job, b.attempt)) {
            for fault in faults(build) {
                check.find(format!("attempt {}.{}: {fault}", build[0].job, build[0].attempt));
            }
        }
        check.looked_at += files.len() as u64;
        for finding in wrong_bytes(&auditor.objects, &files).await? {
            check.find(finding);
        }
    }
}

/// What was built and is not served as it should be.
pub(super) async fn check_current(auditor: &Auditor) -> anyhow::Result<Check> {
    let found = artifacts::not_current(&mut *auditor.pool.acquire().await?).await?;
    Ok(Check::of("current-artifacts", &found, |what, _| {
        format!("{what}: not the files of its newest build, each once")
    }))
}

async fn wrong_bytes(objects: &Objects, files: &[File]) -> anyhow::Result<Vec<String>> {
    let checked = futures_util::stream::iter(files).map(async |file| {
        let found = match objects::digest(objects, &file.object).await? {
            None => "is not in the object store".to_owned(),
            Some((size, _)) if u64::try_from(file.size) != Ok(size) => {
                format!("has {size} bytes instead of {}", file.size)
            }
            Some((_, sha256)) if sha256.to_string() != file.sha256 => format!("has the SHA-256 {sha256}"),
            Some(_) => return anyhow::Ok(None),
        };
        Ok(Some(format!(
            "artifact {} of attempt {}.{}: {} {found}",
            file.id, file.job, file.attempt, file.object
        )))
    });
    let found: Vec<Option<String>> = checked.buffered(OBJECTS_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Of all files of an attempt, which are at least one.
fn faults(files: &[File]) -> Vec<String> {
    let first = &files[0];
    let mut faults = Vec::new();
    if first.result.as_deref() != Some("succeeded") {
        let result = first.result.as_deref().unwrap_or("not at all");
        faults.push(format!("its files are listed, and it ended as {result}"));
    }
    if first.of_job != Some(true) {
        faults.push("its files are listed for something else than its job".to_owned());
    }
    let signed = |file: &File| (file.key_id, file.manifest.clone(), file.signature.clone());
    if files.iter().any(|file| signed(file) != signed(first)) {
        faults.push("its files have different manifests, signatures or keys".to_owned());
    }
    if first.own_key == Some(false) {
        faults.push(format!("key {} is not of the builder that had it", first.key_id));
    }
    match verified(files) {
        Ok(verified) => faults.extend(misplaced(files, &verified)),
        Err(why) => faults.push(why),
    }
    faults
}

/// Checks the manifest and its signature as when the outcome came, with the listed files for the uploads.
fn verified(files: &[File]) -> Result<Verified, String> {
    let first = &files[0];
    let (expected, uploads) =
        parse(files).map_err(|why| format!("its rows cannot be what was checked when it ended: {why}"))?;
    let keys = [(first.key_id, first.public_key.clone())];
    verify(Some(&first.manifest), Some(&first.signature), &keys, &expected, &uploads)
        .map_err(|refusal| refusal.to_string())
}

fn parse(files: &[File]) -> Result<(Expected, Vec<Upload>), Box<dyn std::error::Error>> {
    let first = &files[0];
    let expected = Expected {
        krate: CrateName::parse(first.krate.clone())?,
        version: first.version.clone(),
        kind: first.kind.parse()?,
        target: Target::parse(first.target.clone())?,
        features: first.features.parse()?,
        source_sha256: first.source_sha256.parse()?,
    };
    let uploads = files.iter().map(|file| {
        let name = file.name.clone().try_into()?;
        Ok(Upload { name, size: file.size, sha256: file.sha256.parse()?, object: file.object.clone() })
    });
    let uploads: Result<Vec<Upload>, Box<dyn std::error::Error>> = uploads.collect();
    Ok((expected, uploads?))
}

/// Each file of the manifest has a row, and in its order.
fn misplaced(files: &[File], verified: &Verified) -> Option<String> {
    let listed = files.iter().map(|file| (i64::from(file.position), file.name.as_str()));
    let signed = (0..).zip(&verified.files).map(|(position, file)| (position, &*file.name));
    (!listed.eq(signed)).then(|| "its files are not those of its manifest, in that order".to_owned())
}

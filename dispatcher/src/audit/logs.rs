//! Whether each archived log is there, whole, and has every event of its attempt.

use super::{Auditor, OBJECTS_AT_ONCE, objects, report::Check};
use cratemill_protocol::JobId;
use cratemill_store::{
    audit::{self, logs::Log},
    objects::Objects,
};
use futures_util::{StreamExt, TryStreamExt};

/// Jobs whose attempts are in memory at once.
const PAGE: i64 = 200;

pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<Check> {
    let mut check = Check::new("archived-logs");
    let mut after = JobId(0);
    loop {
        let mut conn = auditor.pool.acquire().await?;
        let page = audit::job_ids(&mut conn, auditor.scope, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(check) };
        after = *last;
        let logs = audit::logs::of(&mut conn, &page).await?;
        drop(conn);
        let archived = logs.iter().filter_map(|log| Some((log, log.log_object.as_deref()?)));
        let faults = futures_util::stream::iter(archived).map(async |(log, object)| {
            let fault = fault(&auditor.objects, log, object).await?;
            anyhow::Ok(fault.map(|fault| format!("attempt {}.{}: {fault}", log.job, log.attempt)))
        });
        let faults: Vec<Option<String>> = faults.buffered(OBJECTS_AT_ONCE).try_collect().await?;
        check.looked_at += faults.len() as u64;
        faults.into_iter().flatten().for_each(|fault| check.find(fault));
    }
}

async fn fault(objects: &Objects, log: &Log, object: &str) -> anyhow::Result<Option<String>> {
    if log.ended_at.is_none() {
        return Ok(Some("its log is archived, and it has not ended".to_owned()));
    }
    if let Some(missing) = log.log_missing.filter(|missing| *missing != 0) {
        return Ok(Some(format!("{missing} of its events are not in its archived log")));
    }
    Ok(match objects::unpacked_length(objects, object).await? {
        None => Some(format!("{object} is not in the object store")),
        Some(Err(why)) => Some(format!("{object} cannot be unpacked: {why}")),
        Some(Ok(length)) if log.log_bytes.map(u64::try_from) != Some(Ok(length)) => {
            Some(format!("{object} unpacks to {length} bytes instead of {:?}", log.log_bytes))
        }
        Some(Ok(_)) => None,
    })
}

//! Failures that are final whatever else is true of the job: many of them in one transaction.

use crate::ending;
use cratemill_protocol::{Outcome, bus::OutcomeMessage};
use cratemill_store::{
    PgPool, faults,
    patience::in_time,
    queue,
    queue::{End, Ended, Ending},
    sessions::{self, Gone},
};
use std::{collections::HashSet, sync::Arc};

/// Whether the outcome alone decides what becomes of the job, unless somebody wants it cancelled.
pub(super) fn is_final(message: &OutcomeMessage) -> bool {
    matches!(&message.outcome, Outcome::Failed { class, .. } if !class.is_retried())
}

/// Tells of each whether it ended its job; where it did not, the job is to be looked at by itself.
pub(super) async fn round(
    pool: &PgPool,
    mut messages: Vec<OutcomeMessage>,
) -> Vec<Result<bool, Arc<cratemill_store::Error>>> {
    for message in &mut messages {
        let outcome = std::mem::replace(&mut message.outcome, Outcome::Cancelled);
        message.outcome = ending::clean(outcome);
    }
    match in_time(end(pool, &messages)).await {
        Ok(ended) => messages.iter().map(|of| Ok(ended.contains(&(of.job, of.attempt)))).collect(),
        Err(error) => {
            let error = Arc::new(error);
            messages.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

async fn end(
    pool: &PgPool,
    messages: &[OutcomeMessage],
) -> Result<HashSet<(cratemill_protocol::JobId, cratemill_protocol::Attempt)>, cratemill_store::Error> {
    let mut endings: Vec<_> = messages.iter().filter_map(ending).collect();
    // In one order, so that two dispatchers that were given the same never wait for each other.
    endings.sort_by_key(|of| (of.job, of.attempt));
    endings.dedup_by_key(|of| (of.job, of.attempt));
    let mut tx = pool.begin().await?;
    let ended = queue::end_all(&mut tx, &endings, false).await?;
    let gone: Vec<_> = endings
        .iter()
        .filter(|of| ended.contains(&(of.job, of.attempt)))
        .map(|of| Gone { builder: of.builder, job: of.job, attempt: of.attempt, accepted: true })
        .collect();
    // After every lock on a job: nobody who waits for a job holds a session.
    sessions::give_back(&mut tx, &gone).await?;
    let builders: Vec<_> = gone.iter().map(|of| of.builder).collect();
    faults::forget(&mut tx, &builders).await?;
    tx.commit().await?;
    Ok(ended)
}

fn ending(message: &OutcomeMessage) -> Option<Ending<'_>> {
    let Outcome::Failed { class, message: why, .. } = &message.outcome else { return None };
    Some(Ending {
        job: message.job,
        attempt: message.attempt,
        builder: message.builder,
        end: End::Failed { class: *class, message: why },
        ended: Ended { outcome: &message.outcome, last_seq: Some(message.last_seq) },
    })
}

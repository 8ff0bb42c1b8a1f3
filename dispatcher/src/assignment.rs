//! Assignment: rounds that lease queued jobs to waiting builders, and tell the nodes that hold their connections.
//!
//! A round is one transaction. Its message to the node may be lost: then nobody accepts, the lease runs out after
//! [`ACCEPT`], and the rescue queues the job again.

use crate::{
    matching::{self, Builder},
    metrics,
    registry::{IndexUrl, client::Registry, template::IndexConfig},
    wakes::Wakes,
};
use anyhow::{Context as _, anyhow};
use cratemill_protocol::{
    Attempt, Limits, bus,
    bus::{Assigned, AssignedJob, NodeMessage},
    subjects,
};
use cratemill_service::{
    bus::Bus,
    outage::{Outage, pause},
};
use cratemill_store::{
    PgPool,
    patience::in_time,
    queue,
    queue::Candidate,
    sessions::{self, Waiting},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// A builder accepts within a round trip; a lost message costs no more than this.
const ACCEPT: Duration = Duration::from_secs(15);
/// Builders served in one transaction.
const MAX_BUILDERS: i64 = 128;
/// Jobs leased in one transaction: short enough that no other dispatcher waits for it.
const MAX_JOBS: usize = 512;
/// Without any wake-up: what a lost notification costs at most.
const POLL: Duration = Duration::from_secs(2);
/// Clocks differ by more than any shorter wait would be worth.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// A job is less than 2 KiB on the bus, and a message at most 1 MB.
const MAX_JOBS_IN_MESSAGE: usize = 256;
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// What the rounds need.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub pool: PgPool,
    pub bus: Bus,
    pub registry: Arc<Registry>,
    pub wakes: Arc<Wakes>,
    pub limits: Limits,
    pub lease_s: u32,
}

pub async fn run(assignment: Assignment, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut outage = Outage::new("assignment");
    while !shutdown.is_cancelled() {
        // The first round waits for the registry, which may hang; a round that has begun tells the nodes what it did.
        let Some(config) = shutdown.run_until_cancelled(assignment.registry.config()).await else { break };
        let rounds = match config {
            Ok(config) => assignment.rounds(&config).await,
            Err(error) => Err(error.into()),
        };
        match rounds {
            Ok(again) => {
                outage.over();
                tokio::select! {
                    () = assignment.wakes.jobs.notified() => {}
                    () = assignment.wakes.demand.notified() => {}
                    () = sleep_until(again) => {}
                    () = shutdown.cancelled() => {}
                }
            }
            Err(error) => {
                pause(outage.failed(error), &shutdown).await;
            }
        }
    }
    Ok(())
}

impl Assignment {
    /// Rounds for as long as something is assigned; returns when to look again without any wake-up.
    async fn rounds(&self, config: &IndexConfig) -> anyhow::Result<Instant> {
        // Leases that no node hears of would only run out.
        self.bus.check().map_err(|why| anyhow!("the bus is away: {why}"))?;
        while in_time(self.round(config)).await? {}
        Ok(self.forgotten())
    }

    /// When what is known of targets without builders has to be looked for again.
    fn forgotten(&self) -> Instant {
        let now = Instant::now();
        now + self.wakes.unserved.known_for(now).clamp(SHORTEST_WAIT, POLL)
    }

    /// One transaction; true if there may be more to assign.
    async fn round(&self, config: &IndexConfig) -> anyhow::Result<bool> {
        let mut tx = self.pool.begin().await?;
        let unserved = self.wakes.unserved.known(Instant::now());
        let waiting = sessions::waiting(&mut tx, MAX_BUILDERS, &unserved).await?;
        let Some(limit) = wanted(&waiting) else {
            drop(tx);
            self.look_for_unserved(&unserved).await;
            return Ok(false);
        };
        let mut targets: Vec<String> = waiting.iter().flat_map(|builder| builder.targets.clone()).collect();
        targets.sort();
        targets.dedup();
        let candidates = queue::candidates(&mut tx, &targets, limit).await?;
        let pairs = pair(&waiting, &candidates);
        if pairs.is_empty() {
            return Ok(false);
        }
        let wanted: Vec<_> = pairs.iter().map(|(job, builder)| (*job, builder.builder)).collect();
        let accept_s = i32::try_from(ACCEPT.as_secs()).context("a constant that fits")?;
        let leased = queue::assign(&mut tx, &wanted, accept_s).await?;
        tx.commit().await?;

        self.wakes.outbox.notify_one();
        metrics::assigned(leased.len());
        let mut nodes: HashMap<&str, Vec<Assigned>> = HashMap::new();
        for (candidate, to) in pairs.iter().filter(|(job, _)| leased.contains(&job.id)) {
            let job = assigned_job(candidate, config, self.registry.index(), &self.limits, self.lease_s);
            let assignment = Assigned { connection: to.connection.clone(), builder: to.builder, job };
            nodes.entry(&to.node).or_default().push(assignment);
        }
        for (node, mut jobs) in nodes {
            while !jobs.is_empty() {
                let rest = jobs.split_off(jobs.len().min(MAX_JOBS_IN_MESSAGE));
                self.send(node, std::mem::replace(&mut jobs, rest)).await;
            }
        }
        let due = waiting.first().map_or(0, |first| first.due);
        let counts = |job: &Candidate| !unserved.iter().any(|target| **target == *job.target);
        let counted = pairs.iter().filter(|(job, _)| leased.contains(&job.id) && counts(job));
        let served = i64::try_from(counted.count())?;
        if served < due.min(limit) {
            self.look_for_unserved(&unserved).await;
        }
        // Builders of one target may have come before those of the other that something is due for.
        // And what this round wanted, another dispatcher may have taken while each held builders that the other needs.
        Ok(due >= MAX_BUILDERS || served < due)
    }

    /// Where builders or jobs are left that fit no other. What the round did stands without it.
    async fn look_for_unserved(&self, known: &[String]) {
        let began = self.wakes.unserved.begin();
        let looked = async { sessions::unserved(&mut *self.pool.acquire().await?, known).await };
        match looked.await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => {
                tracing::debug!(targets = ?found, "jobs wait for targets that no builder waits with");
                self.wakes.unserved.found(began, found, Instant::now());
            }
            Err(error) => tracing::debug!(%error, "cannot look for targets that no builder waits with"),
        }
    }

    async fn send(&self, node: &str, jobs: Vec<Assigned>) {
        let count = jobs.len();
        let message = NodeMessage::Assign { jobs };
        let sent = self.bus.client.publish(subjects::node(node), bus::encode(&message).into());
        match timeout(SEND_TIMEOUT, sent).await {
            Ok(Ok(())) => tracing::debug!(node, jobs = count, "assigned"),
            Ok(Err(error)) => {
                tracing::warn!(node, jobs = count, %error, "the node was not told: the leases repair it");
            }
            Err(_) => {
                tracing::warn!(node, jobs = count, "the node was not told in time: the leases repair it");
            }
        }
    }
}

/// How many jobs the waiting builders can take; none if nobody waits.
fn wanted(waiting: &[Waiting]) -> Option<i64> {
    let slots: usize = waiting.iter().map(slots).sum();
    i64::try_from(slots.min(MAX_JOBS)).ok().filter(|slots| *slots > 0)
}

fn slots(waiting: &Waiting) -> usize {
    usize::try_from(waiting.slots).unwrap_or(0)
}

fn pair<'a>(waiting: &'a [Waiting], candidates: &'a [Candidate]) -> Vec<(&'a Candidate, &'a Waiting)> {
    let builders: Vec<_> =
        waiting.iter().map(|builder| Builder { targets: &builder.targets, slots: slots(builder) }).collect();
    let targets: Vec<_> = candidates.iter().map(|job| &job.target).collect();
    let pairs = matching::pairs(&builders, &targets);
    pairs.into_iter().map(|(job, builder)| (&candidates[job], &waiting[builder])).collect()
}

fn assigned_job(
    job: &Candidate,
    config: &IndexConfig,
    index: &IndexUrl,
    limits: &Limits,
    lease_s: u32,
) -> AssignedJob {
    AssignedJob {
        id: job.id,
        attempt: Attempt(job.attempt.0 + 1),
        krate: job.krate.clone(),
        version: job.version.clone(),
        source: config.source(&job.krate, &job.version, &job.sha256),
        private: config.auth_required,
        sha256: job.sha256,
        index: index.for_builders(),
        kind: job.kind,
        target: job.target.clone(),
        features: job.features.clone(),
        limits: limits.clone(),
        lease_s,
    }
}

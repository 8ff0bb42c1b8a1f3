//! What the bus says to this node: jobs for its builders, cancels, and builders that must go.

use super::{Sockets, attempt, database, effects::Input, ready::handed_back};
use cratemill_protocol::{
    BuilderId, FailureClass,
    builder::{Job, JobRef},
    bus::{self, Assigned, AssignedJob, NodeMessage},
    subjects,
};
use cratemill_service::backoff::Backoff;
use cratemill_store::sessions;
use futures_util::StreamExt;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;

/// How often this node says that its connections live: several times within what a dispatcher waits for anything.
const SEEN_PERIOD: Duration = Duration::from_secs(5);

impl Sockets {
    /// A message to every node. It is a hint: what it says is in Postgres too.
    pub(super) async fn tell_all(&self, message: &NodeMessage) {
        let payload = bus::encode(message).into();
        if let Err(error) = self.bus.client.publish(subjects::ALL_NODES, payload).await {
            tracing::warn!(%error, "cannot tell the other nodes");
        }
    }
}

/// Until the node drains. No builder can log in before this node hears what is said to it.
pub(super) async fn run(sockets: &Arc<Sockets>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !sockets.shutdown.is_cancelled() {
        if let Err(error) = listen(sockets).await {
            tracing::warn!(error = format!("{error:#}"), "cannot listen for this node's messages yet");
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait()) => {}
                () = sockets.shutdown.cancelled() => {}
            }
        }
    }
}

/// Sessions that a process of the same name left behind; only before the first builder is let in.
async fn forget_earlier_run(sockets: &Sockets) -> anyhow::Result<()> {
    if !sockets.open.load(Ordering::Acquire) {
        sessions::close_all_of_node(&mut *sockets.pool.acquire().await?, &sockets.node).await?;
        sockets.open.store(true, Ordering::Release);
    }
    Ok(())
}

async fn listen(sockets: &Arc<Sockets>) -> anyhow::Result<()> {
    let client = &sockets.bus.client;
    let own = client.subscribe(subjects::node(&sockets.node)).await?;
    let all = client.subscribe(subjects::ALL_NODES).await?;
    sockets.bus.settle().await?;
    forget_earlier_run(sockets).await?;
    let mut messages = futures_util::stream::select(own, all);
    let mut seen = tokio::time::interval(SEEN_PERIOD);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { anyhow::bail!("the subscription ended") };
                match bus::decode::<NodeMessage>(&message.payload) {
                    Ok(message) => deliver(sockets, message),
                    Err(error) => tracing::error!(%error, "a message to this node cannot be read"),
                }
            }
            _ = seen.tick() => mark_seen(sockets),
            () = sockets.shutdown.cancelled() => return Ok(()),
        }
    }
}

/// A connection without a session would wait for jobs that no dispatcher can give it: it is to log in again. One that
/// missed that its builder drains, or does no longer, hears of it now.
fn mark_seen(sockets: &Arc<Sockets>) {
    let connections: Vec<String> = sockets.connections().keys().cloned().collect();
    // A node that the bus does not reach hears of no job: its builders must not look as if they waited.
    if connections.is_empty() || sockets.bus.check().is_err() {
        return;
    }
    let sockets = sockets.clone();
    tokio::spawn(async move {
        let mark = async { sessions::seen(&mut *sockets.pool.acquire().await?, &connections).await };
        match mark.await {
            Ok(seen) => {
                let seen: HashMap<String, bool> = seen.into_iter().collect();
                for connection in &connections {
                    repair(&sockets, connection, seen.get(connection).copied());
                }
            }
            Err(error) => tracing::warn!(%error, "cannot mark builders' connections as alive"),
        }
    });
}

/// What a lost message would have told a connection; `drain` is what its session says, if it has one.
fn repair(sockets: &Sockets, connection: &str, drain: Option<bool>) {
    let Some(handle) = sockets.connections().get(connection).cloned() else { return };
    let draining = handle.draining.load(Ordering::Relaxed);
    let input = match drain {
        None => Input::Failed("the session is gone, connect again".to_owned()),
        Some(true) if !draining => Input::Drain,
        Some(false) if draining => Input::Undrain,
        Some(_) => return,
    };
    // A full queue: the next period tells it again.
    let _ = handle.inputs.try_send(input);
}

fn deliver(sockets: &Arc<Sockets>, message: NodeMessage) {
    match message {
        NodeMessage::Assign { jobs } => assign_all(sockets, jobs),
        NodeMessage::Cancel { builder, job, attempt, grace_s } => {
            to_builder(sockets, builder, |_| Some(Input::Cancel { job: JobRef { job, attempt }, grace_s }));
        }
        NodeMessage::Disabled { builder } => to_builder(sockets, builder, |_| Some(Input::Disabled)),
        NodeMessage::Undrain { builder } => to_builder(sockets, builder, |_| Some(Input::Undrain)),
        NodeMessage::Drain { builder } => to_builder(sockets, builder, |_| Some(Input::Drain)),
        NodeMessage::Superseded { builder, connection } => {
            to_builder(sockets, builder, |other| (other != connection).then_some(Input::Superseded));
        }
    }
}

fn to_builder(sockets: &Sockets, builder: BuilderId, input: impl Fn(&str) -> Option<Input>) {
    let connections = sockets.connections();
    for (connection, handle) in connections.iter().filter(|(_, handle)| handle.builder == builder) {
        if let Some(input) = input(connection)
            && handle.inputs.try_send(input).is_err()
        {
            tracing::warn!(%builder, connection, "a builder's connection does not keep up");
        }
    }
}

/// What one connection gets at once it is sent in one frame.
fn assign_all(sockets: &Arc<Sockets>, jobs: Vec<Assigned>) {
    let mut connections: HashMap<String, (BuilderId, Vec<Job>)> = HashMap::new();
    for Assigned { connection, builder, job } in jobs {
        let of = JobRef { job: job.id, attempt: job.attempt };
        let jobs = connections.entry(connection).or_insert_with(|| (builder, Vec::new()));
        jobs.1.push(with_token(sockets, of, job));
    }
    for (connection, (builder, jobs)) in connections {
        assign(sockets, &connection, builder, jobs);
    }
}

fn assign(sockets: &Arc<Sockets>, connection: &str, builder: BuilderId, jobs: Vec<Job>) {
    let of: Vec<_> = jobs.iter().map(|job| JobRef { job: job.id, attempt: job.attempt }).collect();
    let inputs = sockets.connections().get(connection).map(|handle| handle.inputs.clone());
    let sent = match inputs {
        Some(inputs) => inputs.try_send(Input::Assigned(jobs)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "its connection does not keep up",
            mpsc::error::TrySendError::Closed(_) => "its connection just ended",
        }),
        None => Err("its connection has ended"),
    };
    if let Err(why) = sent {
        for job in of {
            tracing::info!(job = %job.job, attempt = %job.attempt, %builder, why, "handing a job back");
            hand_back(sockets, builder, job);
        }
    }
}

fn with_token(sockets: &Sockets, of: JobRef, job: AssignedJob) -> Job {
    let base = format!("{}/api/v1/jobs/{}", sockets.config.server, job.id);
    Job {
        id: job.id,
        attempt: job.attempt,
        krate: job.krate,
        version: job.version,
        source: if job.private { sockets.sources.link(&base, job.id, &job.source) } else { job.source },
        sha256: job.sha256,
        index: job.index,
        kind: job.kind,
        target: job.target,
        features: job.features,
        limits: job.limits,
        lease_s: job.lease_s,
        token: database::token(sockets, of),
        upload: format!("{base}/artifacts"),
    }
}

pub(super) fn hand_back(sockets: &Arc<Sockets>, builder: BuilderId, job: JobRef) {
    let sockets = sockets.clone();
    let tasks = sockets.tasks.clone();
    tasks.spawn(async move {
        let message = "the builder left before the job reached it".to_owned();
        let response = handed_back(job, FailureClass::Infrastructure, message, 0);
        if let Err(error) = attempt::store_outcome(&sockets, builder, response).await {
            // Its lease runs out instead.
            tracing::warn!(job = %job.job, error = format!("{error:#}"), "cannot hand a job back");
        }
    });
}

//! What the bus says to this node: jobs for its builders, cancels, and builders that must go.

use super::{Sockets, attempt, database, effects::Input, liveness, ready::handed_back};
use cratemill_protocol::{
    BuilderId, FailureClass,
    builder::{Job, JobRef},
    bus::{self, Assigned, AssignedJob, NodeMessage},
    subjects,
};
use cratemill_service::backoff::Backoff;
use cratemill_store::sessions;
use futures_util::StreamExt;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// A hint: each connection says for itself that it ends.
const HOLD_BACK_TIMEOUT: Duration = Duration::from_secs(5);

impl Sockets {
    /// A message to every node. It is a hint: what it says is in Postgres too.
    pub(super) async fn tell_all(&self, message: &NodeMessage) {
        let payload = bus::encode(message).into();
        if let Err(error) = self.bus.client.publish(subjects::ALL_NODES, payload).await {
            tracing::warn!(%error, "cannot tell the other nodes");
        }
    }
}

/// Until the node has drained. No builder can log in before this node hears what is said to it, and while it drains it
/// hands back what is still given to those who leave: nobody waits for a job that nobody has.
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

async fn listen(sockets: &Arc<Sockets>) -> anyhow::Result<()> {
    let client = &sockets.bus.client;
    let own = client.subscribe(subjects::node(&sockets.run.name)).await?;
    let all = client.subscribe(subjects::ALL_NODES).await?;
    sockets.bus.settle().await?;
    liveness::begin(sockets).await?;
    let messages = futures_util::stream::select(own, all);
    let delivered = messages.for_each(async |message| match bus::decode::<NodeMessage>(&message.payload) {
        Ok(message) => deliver(sockets, message),
        Err(error) => tracing::error!(%error, "a message to this node cannot be read"),
    });
    tokio::select! {
        () = delivered => anyhow::bail!("the subscription ended"),
        () = liveness::run(sockets) => {}
        () = drained(sockets) => {}
    }
    Ok(())
}

/// Returns once the node is to go and every connection has ended.
async fn drained(sockets: &Sockets) {
    sockets.shutdown.cancelled().await;
    sockets.tasks.close();
    // Beside the wait: a database that is away holds nobody up, and what is assigned meanwhile is handed back.
    tokio::join!(hold_back(sockets), sockets.tasks.wait());
}

/// Dispatchers are to look elsewhere, before each connection has said for itself that it ended.
async fn hold_back(sockets: &Sockets) {
    let held = async { sessions::hold_back(&mut *sockets.pool.acquire().await?, &sockets.run).await };
    match timeout(HOLD_BACK_TIMEOUT, held).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot say that this node takes no more jobs"),
        Err(_) => tracing::warn!("cannot say in time that this node takes no more jobs"),
    }
}

fn deliver(sockets: &Arc<Sockets>, message: NodeMessage) {
    match message {
        NodeMessage::Assign { jobs } => assign_all(sockets, jobs),
        NodeMessage::Cancel { builder, job, attempt, grace_s } => {
            let job = JobRef { job, attempt };
            to_builder(sockets, builder, || Input::Cancel { job, grace_s });
        }
        NodeMessage::Disabled { builder } => to_builder(sockets, builder, || Input::Disabled),
        NodeMessage::Undrain { builder } => to_builder(sockets, builder, || Input::Undrain),
        NodeMessage::Drain { builder } => to_builder(sockets, builder, || Input::Drain),
        NodeMessage::Superseded { builder, connection } => superseded(sockets, builder, &connection),
    }
}

/// Such messages may come late and after each other's logins, so the database says which connection is the builder's.
fn superseded(sockets: &Arc<Sockets>, builder: BuilderId, by: &str) {
    let connections = sockets.connections();
    let others = connections.of_builder(builder).filter(|(connection, _)| *connection != by);
    let others: Vec<_> = others.map(|(connection, handle)| (connection.to_owned(), handle.clone())).collect();
    drop(connections);
    if others.is_empty() {
        return;
    }
    let sockets = sockets.clone();
    let tasks = sockets.tasks.clone();
    tasks.spawn(async move {
        let current = async { sessions::connection_of(&mut *sockets.pool.acquire().await?, builder).await };
        match current.await {
            Ok(current) => {
                for (_, handle) in others.iter().filter(|(other, _)| Some(other) != current.as_ref()) {
                    // Its queue is full: the node's next mark tells it.
                    let _ = handle.inputs.try_send(Input::Superseded);
                }
            }
            Err(error) => {
                tracing::warn!(%builder, %error, "cannot tell yet whether a connection is superseded");
            }
        }
    });
}

fn to_builder(sockets: &Sockets, builder: BuilderId, input: impl Fn() -> Input) {
    for (connection, handle) in sockets.connections().of_builder(builder) {
        if handle.inputs.try_send(input()).is_err() {
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
    let inputs = sockets.connections().get(builder, connection).map(|handle| handle.inputs.clone());
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

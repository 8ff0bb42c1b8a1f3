//! A node that goes away: what is given to its builders meanwhile is not lost.

use super::peer::{Peer, new_key, register};
use cratemill_protocol::{
    Attempt, BuilderId, CrateName, Features, JobId, Kind, Limits, Sha256Hex, Target,
    builder::CloseReason,
    bus::{self, Assigned, AssignedJob, NodeMessage, OutcomeBatch},
    codec::Encoding,
    subjects,
};
use cratemill_stack::cluster::{Cluster, Options};
use cratemill_store::PgConnection;
use futures_util::StreamExt;
use sqlx::Connection;
use std::time::Duration;

/// Ten times what a busy machine takes; it is handed back at once.
const PATIENCE: Duration = Duration::from_secs(30);

fn assign(connection: String, builder: BuilderId) -> NodeMessage {
    let job = AssignedJob {
        id: JobId(4_711),
        attempt: Attempt(1),
        krate: CrateName::parse("late").unwrap(),
        version: "1.0.0".into(),
        source: "https://registry.example/late".into(),
        private: false,
        sha256: Sha256Hex::of(b""),
        index: None,
        kind: Kind::Metadata,
        target: Target::parse("any").unwrap(),
        features: Features::default(),
        limits: Limits::default(),
        lease_s: 15,
    };
    NodeMessage::Assign { jobs: vec![Assigned { connection, builder, job }] }
}

/// The database is slow to take that the builder left: until it has, dispatchers give it jobs.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_assigned_while_a_node_drains_is_handed_back() {
    let options = Options { index: "default".into(), builder: 0, ..Options::default() };
    let mut cluster = Cluster::start(options).await.unwrap();
    let key = new_key();
    let builder = BuilderId(register(&cluster.client(), "b", &key, cluster.targets()).await);
    let mut peer = Peer::connect(&cluster, Encoding::MsgPack, key).await;
    peer.login().await;

    let url: async_nats::ServerAddr = cluster.nats.url("admin").unwrap().parse().unwrap();
    let password = url.password().unwrap().to_owned();
    let nats = async_nats::ConnectOptions::with_user_and_password("admin".into(), password);
    let nats = nats.connect(url).await.unwrap();
    let mut conn = PgConnection::connect(&cluster.postgres.url()).await.unwrap();
    let mut held = conn.begin().await.unwrap();
    let (connection, node): (String, String) =
        sqlx::query_as("SELECT connection, node FROM builder_sessions FOR UPDATE")
            .fetch_one(&mut *held)
            .await
            .unwrap();
    let mut outcomes = nats.subscribe(subjects::build_outcome(&node)).await.unwrap();
    nats.flush().await.unwrap();

    let handed_back = async {
        assert_eq!(peer.close_reason().await, CloseReason::Draining);
        let message = bus::encode(&assign(connection, builder)).into();
        nats.publish(subjects::node(&node), message).await.unwrap();
        let outcome =
            tokio::time::timeout(PATIENCE, outcomes.next()).await.expect("it is handed back").unwrap();
        let batch: OutcomeBatch = bus::decode(&outcome.payload).unwrap();
        assert_eq!((batch.outcomes[0].job, batch.outcomes[0].builder), (JobId(4_711), builder));
        held.rollback().await.unwrap();
    };
    let (stopped, ()) = tokio::join!(cluster.api[0].stop(), handed_back);
    stopped.unwrap();
    cluster.stop().await.unwrap();
}

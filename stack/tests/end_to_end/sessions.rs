//! Builders' sessions through the load balancer: a whole one in each subprotocol, and every refusal.

use super::{
    peer::{METADATA, Peer, new_key, open, put, register},
    scene::{Scene, until},
};
use cratemill_protocol::{
    BuilderId, Stage,
    builder::{
        ChallengeResponse, ClientMessage, CloseReason, Event, Heartbeat, JobEvent, JobRef, Load,
        MAX_FRAME_BYTES, Nonce, SUBPROTOCOL_JSON, ServerMessage,
    },
    codec::Encoding,
};
use cratemill_stack::{
    cluster::{Cluster, Options},
    fixtures::crates,
    services::Role,
};
use cratemill_store::{
    PgConnection, builders,
    nodes::{self, Run},
    sessions,
};
use futures_util::SinkExt;
use reqwest::Method;
use serde_json::json;
use sqlx::Connection;
use tokio_tungstenite::tungstenite::{Message, http::StatusCode};

const NO_BUILDER: Options = Options {
    api: 1,
    live: 1,
    dispatcher: 1,
    counter: 1,
    builder: 0,
    nats: 1,
    redis: false,
    address: std::net::Ipv4Addr::LOCALHOST,
    data_dir: None,
    durable: false,
    bin_dir: None,
    index: String::new(),
    targets: Vec::new(),
    slots: 1,
    env: Vec::new(),
};

#[tokio::test(flavor = "multi_thread")]
async fn another_implementation_builds_in_either_subprotocol() {
    let scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], Options { api: 2, ..NO_BUILDER }).await;
    for encoding in [Encoding::Json, Encoding::MsgPack] {
        let key = new_key();
        register(&scene.client, encoding.subprotocol(), &key, scene.cluster.targets()).await;
        let mut peer = Peer::connect(&scene.cluster, encoding, key).await;
        let welcome = peer.login().await;
        assert_eq!(welcome.name, encoding.subprotocol());
        let enqueued = scene.enqueue("hello-bin", "metadata").await;
        let job = peer.take_job().await;
        assert_eq!(json!(job.id), enqueued["id"]);
        peer.event(&job, 1, Event::Stage { stage: Stage::Fetch }).await;
        peer.event(&job, 2, Event::Log { offset: 0, text: "grüße\n".into() }).await;
        assert_eq!(scene.log(&enqueued["id"]).await, "grüße\n", "visible while it runs");
        let running = vec![JobRef { job: job.id, attempt: job.attempt }];
        peer.send(&ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running })).await;
        let fresh = peer
            .wait_for(|message| match message {
                ServerMessage::LeaseRenewed { token, .. } => Some(token.clone()),
                _ => None,
            })
            .await;
        let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(METADATA));
        assert_eq!(put(&scene.client, &job, "m.json", fresh.secret(), METADATA, &sha256).await, 201);
        peer.succeed(&job, "m.json", METADATA, 2, |_| {}).await;
        let end = scene.viewer(&[&format!("job.{}", job.id)]).await.job_end("hello-bin", "metadata").await;
        assert_eq!(end["state"], "succeeded", "{end}");
        let stored = scene.get("/api/v1/crates/hello-bin/1.0.0/any/metadata").await.bytes().await.unwrap();
        assert_eq!(stored, METADATA);
        peer.send(&ClientMessage::Goodbye { why: "done".into() }).await;
        peer.close_reason().await;
    }
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_a_builder_is_refused() {
    let options = NO_BUILDER.with_env(Role::Api, "LOGIN_TIMEOUT_S", "15");
    let cluster = Cluster::start(Options { index: "default".into(), ..options }).await.unwrap();
    let client = cluster.client();
    let server = cluster.lb_url();
    assert_eq!(open(&server, None).await.unwrap_err(), StatusCode::BAD_REQUEST);
    assert_eq!(open(&server, Some("cratemill.v9.msgpack")).await.unwrap_err(), StatusCode::BAD_REQUEST);
    assert!(
        open(&server, Some("cratemill.v9.json, cratemill.v1.json")).await.is_ok(),
        "one it knows is enough"
    );
    let plain = client.http().get(client.url("/api/v1/builder")).send().await.unwrap();
    assert!(plain.status().is_client_error(), "no WebSocket at all: {}", plain.status());

    for encoding in [Encoding::MsgPack, Encoding::Json] {
        let mut stranger = Peer::connect(&cluster, encoding, new_key()).await;
        let hello = stranger.hello();
        stranger.send(&hello).await;
        assert_eq!(stranger.close_reason().await, CloseReason::UnknownKey);
    }

    let key = new_key();
    let id = register(&client, "known", &key, cluster.targets()).await;
    signatures_for_something_else(&cluster, &key).await;

    let mut silent = Peer::connect(&cluster, Encoding::Json, key.clone()).await;
    let mut half = Peer::connect(&cluster, Encoding::Json, key.clone()).await;
    half.challenge().await;
    let (silent, half) = tokio::join!(silent.close_reason(), half.close_reason());
    assert_eq!(silent, CloseReason::LoginTimeout);
    assert_eq!(half, CloseReason::LoginTimeout, "half a login does not buy time");

    // Disabled: at once for the one that is connected, and at the next login.
    let mut connected = Peer::connect(&cluster, Encoding::MsgPack, key.clone()).await;
    connected.login().await;
    let path = format!("/api/v1/builders/{id}");
    client.call(Method::PATCH, &path, &json!({"enabled": false})).await.unwrap();
    assert_eq!(connected.close_reason().await, CloseReason::Disabled);
    let mut again = Peer::connect(&cluster, Encoding::MsgPack, key).await;
    let hello = again.hello();
    again.send(&hello).await;
    assert_eq!(again.close_reason().await, CloseReason::Disabled);
    cluster.stop().await.unwrap();
}

/// The messages that would have told them are never sent: each connection hears within the period in which its node marks
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_message_says_the_node_finds_out() {
    let cluster = Cluster::start(Options { index: "default".into(), api: 2, ..NO_BUILDER }).await.unwrap();
    let client = cluster.client();
    let key = new_key();
    let id = BuilderId(register(&client, "b", &key, cluster.targets()).await);
    let mut conn = PgConnection::connect(&cluster.postgres.url()).await.unwrap();
    let logged_in = async || {
        let mut peer = Peer::connect(&cluster, Encoding::MsgPack, key.clone()).await;
        peer.login().await;
        peer
    };

    let mut peer = logged_in().await;
    builders::update(&mut conn, id, None, Some(true)).await.unwrap();
    peer.wait_for(|message| matches!(message, ServerMessage::Drain).then_some(())).await;
    builders::update(&mut conn, id, None, Some(false)).await.unwrap();
    assert_eq!(peer.close_reason().await, CloseReason::Draining, "it is to come back");

    let mut peer = logged_in().await;
    let elsewhere = Run { name: "elsewhere".into(), epoch: 1 };
    nodes::register(&mut conn, &elsewhere).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    sessions::open(&mut tx, id, "another", &elsewhere, &[]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(peer.close_reason().await, CloseReason::Internal, "its session is another connection's");

    let mut peer = logged_in().await;
    sqlx::query("DELETE FROM builder_sessions").execute(&mut conn).await.unwrap();
    sqlx::query("DELETE FROM nodes").execute(&mut conn).await.unwrap();
    assert_eq!(peer.close_reason().await, CloseReason::Internal, "its node was taken for dead");

    let mut peer = until("the nodes let builders in again", async || {
        let mut peer = Peer::connect(&cluster, Encoding::MsgPack, key.clone()).await;
        peer.try_login().await.then_some(peer)
    })
    .await;
    builders::update(&mut conn, id, Some(false), None).await.unwrap();
    assert_eq!(peer.close_reason().await, CloseReason::Disabled);
    cluster.stop().await.unwrap();
}

async fn signatures_for_something_else(cluster: &Cluster, key: &ssh_key::PrivateKey) {
    let peer = async || Peer::connect(cluster, Encoding::MsgPack, key.clone()).await;
    let refused = async |peer: &mut Peer, response: ClientMessage| {
        peer.send(&response).await;
        assert_eq!(peer.close_reason().await, CloseReason::BadSignature);
    };

    // A response that was good on another connection.
    let mut first = peer().await;
    let challenge = first.challenge().await;
    let replayed = first.response(&challenge);
    let mut second = peer().await;
    second.challenge().await;
    refused(&mut second, replayed).await;

    let mut other_server = peer().await;
    let mut challenge = other_server.challenge().await;
    challenge.server = "https://elsewhere.example".into();
    let response = other_server.response(&challenge);
    refused(&mut other_server, response).await;

    let mut other_nonce = peer().await;
    let mut challenge = other_nonce.challenge().await;
    challenge.nonce = Nonce([0; 32]);
    let response = other_nonce.response(&challenge);
    refused(&mut other_nonce, response).await;

    let mut other_namespace = peer().await;
    let challenge = other_namespace.challenge().await;
    let bytes = challenge.signed_bytes(&other_namespace.fingerprint());
    let signature = other_namespace.sign("file", &bytes);
    refused(&mut other_namespace, ClientMessage::ChallengeResponse(ChallengeResponse { signature })).await;

    let mut other_key = peer().await;
    let challenge = other_key.challenge().await;
    let bytes = challenge.signed_bytes(&other_key.fingerprint());
    other_key.key = new_key();
    let signature = other_key.sign("cratemill-auth@v1", &bytes);
    refused(&mut other_key, ClientMessage::ChallengeResponse(ChallengeResponse { signature })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_misbehaves_is_closed_and_hurts_nobody() {
    let cluster = Cluster::start(Options { index: "default".into(), ..NO_BUILDER }).await.unwrap();
    let client = cluster.client();
    let good_key = new_key();
    register(&client, "good", &good_key, cluster.targets()).await;
    let mut good = Peer::connect(&cluster, Encoding::MsgPack, good_key).await;
    good.login().await;
    let key = new_key();
    register(&client, "bad", &key, cluster.targets()).await;
    let logged_in = async |encoding| {
        let mut peer = Peer::connect(&cluster, encoding, key.clone()).await;
        peer.login().await;
        peer
    };

    let mut oversize = logged_in(Encoding::MsgPack).await;
    let _ = oversize.socket.send(Message::binary(vec![0; MAX_FRAME_BYTES + 1])).await;
    assert_eq!(oversize.close_reason().await, CloseReason::FrameTooLarge);
    // Now and then, so that it is not taken for dead.
    good.beat(&[]).await;

    let mut garbage = logged_in(Encoding::MsgPack).await;
    garbage.socket.send(Message::binary(b"\xc1 not a message".to_vec())).await.unwrap();
    assert_eq!(garbage.close_reason().await, CloseReason::Protocol);

    let mut wrong_type = logged_in(Encoding::Json).await;
    wrong_type.socket.send(Message::binary(b"{}".to_vec())).await.unwrap();
    assert_eq!(wrong_type.close_reason().await, CloseReason::Protocol, "binary in {SUBPROTOCOL_JSON}");

    let mut early = Peer::connect(&cluster, Encoding::Json, key.clone()).await;
    early.send(&ClientMessage::JobRequest { slots: 1 }).await;
    assert_eq!(early.close_reason().await, CloseReason::Protocol);
    good.beat(&[]).await;

    let mut foreign = logged_in(Encoding::MsgPack).await;
    let event = Event::Log { offset: 0, text: "x".into() };
    let event = JobEvent { job: 1.into(), attempt: 1.into(), seq: 1, event };
    foreign.send(&ClientMessage::JobEvent(event)).await;
    foreign.wait_for(|message| matches!(message, ServerMessage::Cancel { .. }).then_some(())).await;

    // The newest login has the session; the older one is told.
    let mut newer = logged_in(Encoding::MsgPack).await;
    assert_eq!(foreign.close_reason().await, CloseReason::Superseded);
    good.beat(&[]).await;
    let heartbeat = ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running: vec![] });
    for _ in 0..40_000 {
        newer.send(&heartbeat).await;
    }
    assert_eq!(newer.close_reason().await, CloseReason::Flood);

    good.send(&ClientMessage::JobRequest { slots: 1 }).await;
    good.send(&heartbeat).await;
    let path = "/api/v1/builders";
    until("the good builder is still connected", async || {
        let builders = client.list(path).await.unwrap();
        builders.iter().any(|builder| builder["name"] == "good" && builder["connected"] == true).then_some(())
    })
    .await;
    cluster.stop().await.unwrap();
}

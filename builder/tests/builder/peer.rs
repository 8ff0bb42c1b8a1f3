//! The server's side of the builder protocol, step by step, and a builder that dials it.

use crate::service::Service;
use axum::{
    Router,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
    routing::get,
};
use cratemill_builder::{
    agent::Signal,
    config::{Caps, Config, Server},
    identity, run,
};
use cratemill_protocol::{
    Attempt, BuilderId, CrateName, Features, JobId, Kind, Limits, Target,
    builder::{
        AUTH_NAMESPACE, Challenge, ClientMessage, ConnectionLimits, Hello, Job, Nonce, Resumed,
        SUBPROTOCOL_MSGPACK, ServerMessage, Welcome,
    },
    codec::Encoding,
    sshsig,
    token::Token,
};
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// Everything here happens within moments; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// A builder that hears nothing for three of them dials again, and it hears something only while a test waits for it.
const HEARTBEAT_S: u32 = 20;

pub(crate) struct Peer {
    pub(crate) service: Service,
    sockets: mpsc::Receiver<WebSocket>,
    pub(crate) folder: TempDir,
    pub(crate) key: PublicKey,
    pub(crate) key_file: PathBuf,
}

pub(crate) struct Builder {
    pub(crate) signals: mpsc::Sender<Signal>,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn upgrade(State(sockets): State<mpsc::Sender<WebSocket>>, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade.protocols([SUBPROTOCOL_MSGPACK]);
    upgrade.on_upgrade(move |socket| async move { drop(sockets.send(socket).await) })
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let (sender, sockets) = mpsc::channel(4);
        let router = Router::new().route("/api/v1/builder", get(upgrade)).with_state(sender);
        let service = Service::start(router).await;
        let folder = tempfile::tempdir().unwrap();
        let private = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
        let key_file = folder.path().join("key");
        private.write_openssh_file(&key_file, LineEnding::LF).unwrap();
        Self { service, sockets, folder, key: private.public_key().clone(), key_file }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            server: Server::new(&self.service.url, None).unwrap(),
            key: identity::Source::File { path: self.key_file.clone(), passphrase_file: None },
            slots: 2,
            targets: vec![],
            work_dir: self.folder.path().join("work"),
            toolchain: None,
            reserve_bytes: 0,
            caps: Caps::default(),
            drain: Duration::from_secs(20),
        }
    }

    pub(crate) fn dial(config: Config) -> Builder {
        let (signals, receiver) = mpsc::channel(2);
        Builder { signals, task: tokio::spawn(run(config, receiver)) }
    }

    /// The next connection of a builder.
    pub(crate) async fn accept(&mut self) -> Line {
        let socket = timeout(PATIENCE, self.sockets.recv()).await.expect("the builder dials").unwrap();
        Line { socket, url: self.service.url.clone(), key: self.key.clone() }
    }

    pub(crate) fn job(&self, id: i64, target: &Target, source: Vec<u8>) -> Job {
        let (source, sha256) = self.service.serve(&format!("{id}/demo.crate"), source);
        Job {
            id: JobId(id),
            attempt: Attempt(1),
            krate: CrateName::parse("demo").unwrap(),
            version: "0.1.0".into(),
            source,
            sha256,
            index: None,
            kind: Kind::Tarball,
            target: target.clone(),
            features: Features::default(),
            limits: Limits { wall_s: 60, ..Limits::default() },
            lease_s: 60,
            token: Token::new("secret"),
            upload: format!("{}/uploads", self.service.url),
        }
    }
}

impl Builder {
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        timeout(PATIENCE, self.task).await.expect("the builder ends").unwrap()
    }
}

/// One connection.
pub(crate) struct Line {
    socket: WebSocket,
    url: String,
    key: PublicKey,
}

impl Line {
    pub(crate) async fn send(&mut self, message: ServerMessage) {
        let bytes = Encoding::MsgPack.encode(&message);
        self.socket.send(Message::Binary(bytes.into())).await.unwrap();
    }

    /// The next message; none when the builder has closed.
    pub(crate) async fn receive_or_end(&mut self) -> Option<ClientMessage> {
        loop {
            match timeout(PATIENCE, self.socket.recv()).await.expect("the builder says something") {
                Some(Ok(Message::Binary(bytes))) => return Some(Encoding::MsgPack.decode(&bytes).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    pub(crate) async fn receive(&mut self) -> ClientMessage {
        self.receive_or_end().await.expect("the connection stays")
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        let ClientMessage::Hello(hello) = self.receive().await else { panic!("hello comes first") };
        hello
    }

    /// The whole login, checked as a server would.
    pub(crate) async fn log_in(&mut self, resumed: Vec<Resumed>) -> Hello {
        self.log_in_beating(HEARTBEAT_S, resumed).await
    }

    pub(crate) async fn log_in_beating(&mut self, heartbeat_s: u32, resumed: Vec<Resumed>) -> Hello {
        let hello = self.hello().await;
        assert_eq!(hello.fingerprint, sshsig::fingerprint(&self.key));
        let challenge = self.challenge(&self.url.clone()).await;
        let ClientMessage::ChallengeResponse(response) = self.receive().await else { panic!("an answer") };
        let signed = challenge.signed_bytes(&hello.fingerprint);
        sshsig::verify(&self.key, AUTH_NAMESPACE, &signed, &response.signature).unwrap();
        self.send(ServerMessage::Welcome(Welcome {
            builder: BuilderId(1),
            name: "tester".into(),
            heartbeat_s,
            lease_s: 60,
            limits: ConnectionLimits {
                max_frame_bytes: 256 * 1024,
                max_log_chunk_bytes: 32 * 1024,
                max_unacked_events: 32,
                max_messages_per_s: 200,
            },
            resumed,
        }))
        .await;
        hello
    }

    pub(crate) async fn challenge(&mut self, server: &str) -> Challenge {
        let challenge =
            Challenge { server: server.to_owned(), connection: "c1".into(), nonce: Nonce(rand::random()) };
        self.send(ServerMessage::ChallengeRequest(challenge.clone())).await;
        challenge
    }
}

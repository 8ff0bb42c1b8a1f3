//! A builder written from the protocol alone: it speaks either subprotocol, and as wrongly as a test wants.

use cratemill_protocol::{
    ArtifactName, Outcome, Sha256Hex, Target,
    builder::{
        AUTH_NAMESPACE, Challenge, ChallengeResponse, ClientMessage, CloseReason, Event, Heartbeat, Hello,
        Job, JobEvent, JobRef, JobResponse, Load, Resume, Resumed, ServerMessage, Welcome,
    },
    codec::Encoding,
    job::Timings,
    manifest::{self, Entry, Manifest},
};
use cratemill_stack::{client::Client, cluster::Cluster};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, rand_core::OsRng};
use std::time::{Duration, Instant};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, handshake::client::Request, http::StatusCode},
};

const PATIENCE: Duration = Duration::from_mins(1);

/// The metadata of hello-bin 1.0.0, if it had one library: nothing follows from it.
pub(super) const METADATA: &[u8] =
    br#"{"packages":[{"name":"hello-bin","version":"1.0.0","targets":[{"kind":["lib"],"name":"x"}]}]}"#;

pub(super) struct Peer {
    // In a box: a test holds several peers, and its future would outgrow the stack.
    pub(super) socket: Box<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    encoding: Encoding,
    pub(super) key: PrivateKey,
    server: String,
    targets: Vec<Target>,
    /// How often the server wants a sign of life.
    heartbeat: Duration,
}

/// Opens a socket at the load balancer, offering `subprotocols`.
pub(super) async fn open(
    server: &str,
    subprotocols: Option<&str>,
) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, StatusCode> {
    match connect_async(upgrade(server, subprotocols)).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(response.status()),
        Err(error) => panic!("the load balancer answers: {error}"),
    }
}

fn upgrade(server: &str, subprotocols: Option<&str>) -> Request {
    let url = format!("{}/api/v1/builder", server.replacen("http", "ws", 1));
    let mut request = url.into_client_request().unwrap();
    if let Some(subprotocols) = subprotocols {
        request.headers_mut().insert("sec-websocket-protocol", subprotocols.parse().unwrap());
    }
    request
}

pub(super) fn new_key() -> PrivateKey {
    PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap()
}

/// Registers a key as a builder of its own; tells the builder's id.
pub(super) async fn register(client: &Client, name: &str, key: &PrivateKey, targets: &[String]) -> i64 {
    let public_key = key.public_key().to_openssh().unwrap();
    let body = json!({"name": name, "public_key": public_key, "targets": targets});
    client.post("/api/v1/builders", &body).await.unwrap()["id"].as_i64().unwrap()
}

impl Peer {
    pub(super) async fn connect(cluster: &Cluster, encoding: Encoding, key: PrivateKey) -> Self {
        Self::connect_at(&cluster.lb_url(), cluster, encoding, key).await
    }

    /// At another address than the load balancer's, which is still what it signs for.
    pub(super) async fn connect_at(
        address: &str,
        cluster: &Cluster,
        encoding: Encoding,
        key: PrivateKey,
    ) -> Self {
        let server = cluster.lb_url();
        let socket = Box::new(open(address, Some(encoding.subprotocol())).await.unwrap());
        let targets = cluster.targets().iter().map(|target| Target::parse(target.clone()).unwrap()).collect();
        Self { socket, encoding, key, server, targets, heartbeat: PATIENCE }
    }

    /// Past the load balancer, with next to no room for what it does not read.
    pub(super) async fn narrow(cluster: &Cluster, encoding: Encoding, key: PrivateKey) -> Self {
        let address = cluster.api[0].port().unwrap().address();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let stream = MaybeTlsStream::Plain(socket.connect(address).await.unwrap());
        let request = upgrade(&format!("http://{address}"), Some(encoding.subprotocol()));
        let socket = Box::new(client_async(request, stream).await.unwrap().0);
        let targets = cluster.targets().iter().map(|target| Target::parse(target.clone()).unwrap()).collect();
        Self { socket, encoding, key, server: cluster.lb_url(), targets, heartbeat: PATIENCE }
    }

    pub(super) async fn send(&mut self, message: &ClientMessage) {
        let bytes = self.encoding.encode(message);
        let frame = match self.encoding {
            Encoding::MsgPack => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).unwrap()),
        };
        // A server that has closed already says why in what is still to be read.
        let _ = self.socket.send(frame).await;
    }

    pub(super) async fn next(&mut self) -> ServerMessage {
        let read = async {
            loop {
                match self.socket.next().await.expect("the socket is open").expect("the socket works") {
                    Message::Binary(bytes) => return Encoding::MsgPack.decode(&bytes).unwrap(),
                    Message::Text(text) => return Encoding::Json.decode(text.as_bytes()).unwrap(),
                    Message::Close(frame) => panic!("closed without a message: {frame:?}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, read).await.expect("a message within the test's patience")
    }

    pub(super) async fn wait_for<T>(&mut self, wanted: impl Fn(&ServerMessage) -> Option<T>) -> T {
        loop {
            let message = self.next().await;
            if let Some(found) = wanted(&message) {
                return found;
            }
            assert!(!matches!(message, ServerMessage::Close { .. }), "{message:?}");
        }
    }

    /// Why the server closes the connection; pings and the like before it are passed over.
    pub(super) async fn close_reason(&mut self) -> CloseReason {
        loop {
            if let ServerMessage::Close { reason, .. } = self.next().await {
                return reason;
            }
        }
    }

    pub(super) fn fingerprint(&self) -> String {
        self.key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn hello(&self) -> ClientMessage {
        ClientMessage::Hello(Hello {
            fingerprint: self.fingerprint(),
            agent: "test-peer/1".into(),
            targets: self.targets.clone(),
            slots: 1,
            resume: vec![],
        })
    }

    /// Says hello and gets the challenge.
    pub(super) async fn challenge(&mut self) -> Challenge {
        let hello = self.hello();
        self.send(&hello).await;
        match self.next().await {
            ServerMessage::ChallengeRequest(challenge) => challenge,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn sign(&self, namespace: &str, bytes: &[u8]) -> String {
        self.key.sign(namespace, HashAlg::Sha512, bytes).unwrap().to_pem(LineEnding::LF).unwrap()
    }

    pub(super) fn response(&self, challenge: &Challenge) -> ClientMessage {
        let signature = self.sign(AUTH_NAMESPACE, &challenge.signed_bytes(&self.fingerprint()));
        ClientMessage::ChallengeResponse(ChallengeResponse { signature })
    }

    pub(super) async fn login(&mut self) -> Welcome {
        let challenge = self.challenge().await;
        assert_eq!(challenge.server, self.server, "a builder signs only for the server it dialled");
        let response = self.response(&challenge);
        self.send(&response).await;
        match self.next().await {
            ServerMessage::Welcome(welcome) => {
                self.heartbeat = Duration::from_secs(welcome.heartbeat_s.into());
                welcome
            }
            other => panic!("{other:?}"),
        }
    }

    /// Whether the node lets it in just now.
    pub(super) async fn try_login(&mut self) -> bool {
        let challenge = self.challenge().await;
        let response = self.response(&challenge);
        self.send(&response).await;
        matches!(self.next().await, ServerMessage::Welcome(_))
    }

    /// Logs in with a job to resume; tells which event is next.
    pub(super) async fn resume(&mut self, job: &Job) -> u64 {
        let ClientMessage::Hello(mut hello) = self.hello() else { unreachable!("hello is a hello") };
        hello.resume = vec![Resume { job: job.id, attempt: job.attempt, next_seq: 1 }];
        self.send(&ClientMessage::Hello(hello)).await;
        let ServerMessage::ChallengeRequest(challenge) = self.next().await else { panic!("no challenge") };
        let response = self.response(&challenge);
        self.send(&response).await;
        match self.next().await {
            ServerMessage::Welcome(Welcome { resumed, .. }) => match resumed.first() {
                Some(Resumed::Continue { next_seq, .. }) => *next_seq,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// Asks for one job, waits for it with the heartbeats of who has none, and accepts it. A request that the bus has
    /// mislaid takes longer than a server waits for who is silent.
    pub(super) async fn take_job(&mut self) -> Job {
        self.send(&ClientMessage::JobRequest { slots: 1 }).await;
        let deadline = Instant::now() + PATIENCE;
        let job = loop {
            match timeout(self.heartbeat, self.next()).await {
                Ok(ServerMessage::Jobs { mut jobs }) if !jobs.is_empty() => break jobs.swap_remove(0),
                Ok(message) => assert!(!matches!(message, ServerMessage::Close { .. }), "{message:?}"),
                Err(_) => self.beat(&[]).await,
            }
            assert!(Instant::now() < deadline, "no job within the test's patience");
        };
        self.send(&ClientMessage::JobAccepted(of(&job))).await;
        job
    }

    /// A heartbeat with these jobs.
    pub(super) async fn beat(&mut self, running: &[&Job]) {
        let running = running.iter().map(|job| of(job)).collect();
        self.send(&ClientMessage::Heartbeat(Heartbeat { load: Load::default(), running })).await;
    }

    pub(super) async fn event(&mut self, job: &Job, seq: u64, event: Event) {
        self.send(&ClientMessage::JobEvent(JobEvent { job: job.id, attempt: job.attempt, seq, event })).await;
        self.wait_for(|message| match message {
            ServerMessage::EventAck { seq: acked, .. } if *acked >= seq => Some(()),
            _ => None,
        })
        .await;
    }

    /// Ends the attempt with a manifest for `bytes` under `name`; `change` may spoil it.
    pub(super) async fn succeed(
        &mut self,
        job: &Job,
        name: &str,
        bytes: &[u8],
        last_seq: u64,
        change: impl FnOnce(&mut Manifest),
    ) {
        self.respond(job, name, bytes, last_seq, change).await;
        let done = of(job);
        self.wait_for(|message| (*message == ServerMessage::JobDone(done)).then_some(())).await;
    }

    /// The same, without waiting for the answer.
    pub(super) async fn respond(
        &mut self,
        job: &Job,
        name: &str,
        bytes: &[u8],
        last_seq: u64,
        change: impl FnOnce(&mut Manifest),
    ) {
        let mut manifest = Manifest {
            krate: job.krate.clone(),
            version: job.version.clone(),
            kind: job.kind,
            target: job.target.clone(),
            features: job.features.clone(),
            toolchain: "rustc of a test".into(),
            source_sha256: job.sha256,
            artifacts: vec![Entry {
                name: ArtifactName::parse(name).unwrap(),
                size: bytes.len() as u64,
                sha256: Sha256Hex::of(bytes),
            }],
        };
        change(&mut manifest);
        let text = manifest.to_text();
        let signature = self.sign(manifest::NAMESPACE, text.as_bytes());
        let outcome = Outcome::Succeeded { timings: Timings::default() };
        self.send(&ClientMessage::JobResponse(JobResponse {
            job: job.id,
            attempt: job.attempt,
            outcome,
            last_seq,
            manifest: Some(text),
            signature: Some(signature),
        }))
        .await;
    }
}

pub(super) fn of(job: &Job) -> JobRef {
    JobRef { job: job.id, attempt: job.attempt }
}

/// Puts bytes as a builder does; tells the status.
pub(super) async fn put(
    client: &Client,
    job: &Job,
    name: &str,
    token: &str,
    bytes: &[u8],
    sha256: &str,
) -> u16 {
    let url = format!("{}/{name}", job.upload);
    let request = client.http().put(url).bearer_auth(token).header("x-sha256", sha256);
    request.body(bytes.to_vec()).send().await.expect("the load balancer answers").status().as_u16()
}

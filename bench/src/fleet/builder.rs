//! One simulated builder: its login, and the loop that answers.

use super::{Options, accepts::Accepts, demand::Demand, identity::Identity, wire};
use anyhow::{Context, Result, bail};
use cratemill_protocol::{
    JobId,
    builder::{
        ChallengeResponse, ClientMessage, Heartbeat, Hello, Load, MAX_FRAME_BYTES, SUBPROTOCOL_MSGPACK,
        ServerMessage,
    },
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Bytes, Message, client::IntoClientRequest, http::HeaderValue,
        http::header::SEC_WEBSOCKET_PROTOCOL, protocol::WebSocketConfig,
    },
};

/// Ten thousand of them are in one process; a frame with many jobs grows it for a moment.
const READ_BUFFER_BYTES: usize = 1024;
/// Frames that are answered with one write.
const MAX_BATCH: usize = 64;

/// What a builder tells its fleet.
#[derive(Debug, Clone)]
pub(super) struct Events {
    pub(super) accepts: Arc<Accepts>,
    pub(super) shard: usize,
    /// Why the first one ended.
    pub(super) ended: Arc<Mutex<Option<String>>>,
}

#[derive(Debug)]
pub(super) struct Builder {
    socket: WebSocketStream<TcpStream>,
    heartbeat: Duration,
    next_heartbeat: Instant,
    demand: Demand,
    failure: wire::Failure,
    /// Of the frames that are read and not answered yet.
    accepted: Vec<JobId>,
    events: Events,
}

impl Builder {
    pub(super) async fn log_in(
        identity: &Identity,
        node: &str,
        options: &Options,
        events: Events,
    ) -> Result<Self> {
        let mut socket = connect(node).await?;
        let hello = ClientMessage::Hello(Hello {
            fingerprint: identity.fingerprint.clone(),
            agent: "cratemill-bench".into(),
            targets: options.targets.clone(),
            slots: options.slots,
            resume: Vec::new(),
        });
        socket.send(wire::frame(&hello)).await?;
        let challenge = match receive(&mut socket).await? {
            ServerMessage::ChallengeRequest(challenge) => challenge,
            other => bail!("expected a challenge: {other:?}"),
        };
        let signature = identity.sign(&challenge)?;
        let response = ClientMessage::ChallengeResponse(ChallengeResponse { signature });
        socket.send(wire::frame(&response)).await?;
        let welcome = match receive(&mut socket).await? {
            ServerMessage::Welcome(welcome) => welcome,
            other => bail!("expected a welcome: {other:?}"),
        };
        let heartbeat = Duration::from_secs(u64::from(welcome.heartbeat_s));
        let mut this = Self {
            socket,
            heartbeat,
            next_heartbeat: Instant::now() + heartbeat,
            demand: Demand::new(options.slots),
            failure: wire::Failure::new(),
            accepted: Vec::new(),
            events,
        };
        this.ask().await?;
        this.socket.flush().await?;
        Ok(this)
    }

    /// Until the connection ends, which it does not do by itself.
    pub(super) async fn serve(mut self) {
        if let Err(error) = self.run().await {
            let mut ended = self.events.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.get_or_insert_with(|| format!("{error:#}"));
        }
    }

    async fn run(&mut self) -> Result<()> {
        loop {
            tokio::select! {
                frame = self.socket.next() => self.answer(frame).await?,
                () = sleep_until(self.next_heartbeat) => self.beat().await?,
            }
            // What else has come is answered with the same write.
            for _ in 1..MAX_BATCH {
                let Some(frame) = self.socket.next().now_or_never() else { break };
                self.answer(frame).await?;
            }
            self.ask().await?;
            self.socket.flush().await?;
            if !self.accepted.is_empty() {
                self.events.accepts.record(self.events.shard, self.accepted.drain(..));
            }
        }
    }

    async fn answer(&mut self, frame: Option<Result<Message, tungstenite::Error>>) -> Result<()> {
        match frame.context("the connection ended")?? {
            Message::Binary(bytes) => self.message(&bytes).await,
            Message::Close(frame) => bail!("the node closed the connection: {frame:?}"),
            // The socket answers pings by itself.
            _ => Ok(()),
        }
    }

    async fn message(&mut self, bytes: &Bytes) -> Result<()> {
        let incoming = wire::peek(bytes)?;
        match incoming.kind {
            "jobs" => {
                self.demand.assigned(incoming.jobs.len());
                for job in &incoming.jobs {
                    self.take(job).await?;
                }
            }
            // A cancel here says that a lease was lost: nothing more comes of it.
            "job_done" | "cancel" => self.demand.ended(1),
            "ping" => self.beat().await?,
            "close" => bail!("the node closes: {:?}", wire::decode(bytes)?),
            _ => {}
        }
        Ok(())
    }

    async fn take(&mut self, job: &wire::Job) -> Result<()> {
        let of = job.of();
        self.socket.feed(wire::frame(&ClientMessage::JobAccepted(of))).await?;
        self.socket.feed(self.failure.of(of)).await?;
        self.accepted.push(of.job);
        Ok(())
    }

    async fn ask(&mut self) -> Result<()> {
        if let Some(slots) = self.demand.ask() {
            self.socket.feed(wire::frame(&ClientMessage::JobRequest { slots })).await?;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<()> {
        self.next_heartbeat = Instant::now() + self.heartbeat;
        let heartbeat = Heartbeat { load: Load::default(), running: Vec::new() };
        Ok(self.socket.feed(wire::frame(&ClientMessage::Heartbeat(heartbeat))).await?)
    }
}

async fn connect(node: &str) -> Result<WebSocketStream<TcpStream>> {
    let address = node.strip_prefix("http://").context("a node's URL is http://host:port")?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{address}/api/v1/builder").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL_MSGPACK));
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES));
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(socket)
}

async fn receive(socket: &mut WebSocketStream<TcpStream>) -> Result<ServerMessage> {
    loop {
        match socket.next().await.context("the connection ended")?? {
            Message::Binary(bytes) => return wire::decode(&bytes),
            Message::Close(frame) => bail!("the node closed the connection: {frame:?}"),
            _ => {}
        }
    }
}

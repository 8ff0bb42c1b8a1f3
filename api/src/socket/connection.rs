//! The I/O of one builder's socket: frames in, effects out. What it means is decided in [`super::session`].

use super::{
    INPUTS, Sockets,
    attempt::{self, Attempt},
    connections::Handle,
    database,
    demand::Demand,
    effects::{Effect, Input, Work},
    inbox,
    lobby::Place,
    session::Session,
};
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use cratemill_protocol::{
    BuilderId,
    builder::{ClientMessage, CloseReason, JobRef, Nonce, ServerMessage},
    bus::NodeMessage,
    codec::Encoding,
};
use rand::RngCore;
use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// A builder that takes nothing for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What the loop of one connection owns.
struct Connection {
    id: String,
    socket: WebSocket,
    encoding: Encoding,
    sockets: Arc<Sockets>,
    session: Session,
    inputs: mpsc::Sender<Input>,
    /// Until the builder is logged in.
    place: Option<Place>,
    builder: Option<(BuilderId, String)>,
    attempts: HashMap<JobRef, Attempt>,
    /// The builder sent more log than it may: until then nothing is read from it.
    reads_from: Option<Instant>,
    demand: Option<Demand>,
    draining: Arc<AtomicBool>,
}

pub(super) async fn run(socket: WebSocket, encoding: Encoding, sockets: Arc<Sockets>, place: Place) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let mut nonce = Nonce([0; 32]);
    rand::rng().fill_bytes(&mut nonce.0);
    let session = Session::new(sockets.config.clone(), id.clone(), nonce, Instant::now());
    let (inputs, mut receiver) = mpsc::channel(INPUTS);
    let mut connection = Connection {
        id,
        socket,
        encoding,
        sockets,
        session,
        inputs,
        place: Some(place),
        builder: None,
        attempts: HashMap::new(),
        reads_from: None,
        demand: None,
        draining: Arc::default(),
    };
    connection.serve(&mut receiver).await;
    // A job that was assigned and never reached the builder goes back at once.
    receiver.close();
    while let Ok(input) = receiver.try_recv() {
        if let (Input::Assigned(jobs), Some((builder, _))) = (input, &connection.builder) {
            for job in jobs {
                let job = JobRef { job: job.id, attempt: job.attempt };
                inbox::hand_back(&connection.sockets, *builder, job);
            }
        }
    }
    connection.leave().await;
}

impl Connection {
    async fn serve(&mut self, receiver: &mut mpsc::Receiver<Input>) {
        let shutdown = self.sockets.shutdown.clone();
        let mut shutdown = pin!(shutdown.cancelled());
        let mut tick = pin!(tokio::time::sleep_until(self.session.deadline().into()));
        while !self.session.is_closed() {
            let input = tokio::select! {
                frame = next_frame(&mut self.socket, self.reads_from) => match self.parse(frame) {
                    Some(input) => input,
                    None => return,
                },
                Some(input) = receiver.recv() => input,
                () = &mut shutdown => Input::Shutdown,
                () = place_wanted(self.place.as_ref()) => Input::PlaceWanted,
                () = &mut tick => Input::Tick,
            };
            let sets_timer = matches!(input, Input::Tick | Input::Opened(_));
            let opened = if let Input::Opened(opened) = &input { Some(opened.changes) } else { None };
            let mut effects: VecDeque<_> = self.session.handle(input, Instant::now()).into();
            self.draining.store(self.session.is_draining(), Ordering::Relaxed);
            if let (Some(changes), Some((builder, _))) = (opened, &self.builder) {
                // From here on the node finds it: its session is recorded.
                let handle = Handle { inputs: self.inputs.clone(), draining: self.draining.clone() };
                self.sockets.connections().insert(*builder, self.id.clone(), handle, changes);
            }
            while let Some(effect) = effects.pop_front() {
                if let Err(why) = self.execute(effect).await {
                    tracing::debug!(connection = self.id, why, "builder connection broke");
                    return;
                }
            }
            // Messages only put it off, and are too many to set a timer each: one that is early finds nothing due.
            if sets_timer {
                tick.as_mut().reset(self.session.deadline().into());
            }
        }
    }

    /// The frame as an input; `None` when the socket is at its end.
    fn parse(&self, frame: Option<Result<Message, axum::Error>>) -> Option<Input> {
        let bytes = match (self.encoding, frame?) {
            (Encoding::MsgPack, Ok(Message::Binary(bytes))) => bytes,
            (Encoding::Json, Ok(Message::Text(text))) => text.into(),
            (_, Ok(Message::Ping(_) | Message::Pong(_))) => return Some(Input::KeepAlive),
            (_, Ok(Message::Close(_))) => return None,
            (_, Ok(_)) => return Some(Input::Malformed("the frame's type is not the subprotocol's".into())),
            (_, Err(error)) if error.to_string().contains("too long") => return Some(Input::FrameTooLarge),
            (_, Err(error)) => {
                tracing::debug!(connection = self.id, %error, "builder socket failed");
                return None;
            }
        };
        Some(match self.encoding.decode::<ClientMessage>(&bytes) {
            Ok(message) => Input::Message(Box::new(message)),
            Err(error) => Input::Malformed(error.to_string()),
        })
    }

    async fn execute(&mut self, effect: Effect) -> Result<(), &'static str> {
        match effect {
            Effect::Send(message) => self.send(&message).await,
            Effect::Close { reason, message } => self.close(reason, message).await,
            Effect::FindKey(fingerprint) => {
                let (pool, lookups) = (self.sockets.pool.clone(), self.sockets.lookups.clone());
                self.answer(async move {
                    let _turn = lookups.acquire_owned().await?;
                    let key = database::find_key(&pool, &fingerprint).await?;
                    Ok(Input::Key(key.map(Box::new)))
                });
                Ok(())
            }
            Effect::Open { builder, name, targets, resume } => {
                if self.sockets.returns.may_log_in(builder, Instant::now()) {
                    self.place = None;
                    self.open(builder, name, targets, resume);
                } else {
                    self.answer(std::future::ready(Ok(Input::TooManyLogins)));
                }
                Ok(())
            }
            Effect::Ask { slots, answered } => {
                self.ask(slots, answered);
                Ok(())
            }
            Effect::Work(job, work) => self.work(job, work),
            Effect::Renew(jobs) => {
                if let Some((builder, _)) = self.builder {
                    let sockets = self.sockets.clone();
                    self.answer(async move { database::renew(&sockets, builder, &jobs).await });
                }
                Ok(())
            }
        }
    }

    /// Runs a question to a dependency beside the loop and feeds its answer, or its failure, to the session.
    fn answer<F>(&self, question: F)
    where
        F: Future<Output = anyhow::Result<Input>> + Send + 'static,
    {
        let inputs = self.inputs.clone();
        let connection = self.id.clone();
        self.sockets.tasks.spawn(async move {
            let input = question.await.unwrap_or_else(|error| {
                tracing::warn!(connection, error = format!("{error:#}"), "builder session failed");
                Input::Failed("something of ours failed, connect again".into())
            });
            // The loop is gone: nobody waits for the answer.
            let _ = inputs.send(input).await;
        });
    }

    fn open(
        &mut self,
        builder: BuilderId,
        name: String,
        targets: Vec<cratemill_protocol::Target>,
        resume: Vec<cratemill_protocol::builder::Resume>,
    ) {
        tracing::info!(%builder, name, connection = self.id, "builder logged in");
        self.builder = Some((builder, name.clone()));
        self.demand = Some(Demand::new(builder, targets.clone()));
        self.sockets.connections().open(&self.id);
        let (sockets, connection) = (self.sockets.clone(), self.id.clone());
        let gone = self.inputs.clone();
        self.answer(async move {
            let opened = database::open(&sockets, builder, &name, &connection, &targets, &resume).await;
            if gone.is_closed() {
                // The connection ended before its session began.
                close_session(&sockets, builder, &name, &connection).await;
            } else if let Ok(Input::Opened(_)) = &opened {
                sockets.tell_all(&NodeMessage::Superseded { builder, connection }).await;
            }
            opened
        });
    }

    fn ask(&mut self, slots: u16, answered: Vec<JobRef>) {
        if let Some(demand) = &mut self.demand {
            demand.publish(&self.sockets, &self.id, &self.inputs, slots, answered);
        }
    }

    fn work(&mut self, job: JobRef, work: Work) -> Result<(), &'static str> {
        let Some((builder, _)) = self.builder else { return Err("not logged in") };
        let last = matches!(work, Work::Outcome(_));
        if let Work::Event(event, _) = &work {
            let now = Instant::now();
            let wait = self.sockets.rates.wait(builder, &event.event, now);
            self.reads_from = (!wait.is_zero()).then_some(now + wait);
        }
        let attempt = self
            .attempts
            .entry(job)
            .or_insert_with(|| attempt::start(self.sockets.clone(), builder, job, self.inputs.clone()));
        let sent = attempt.send(work);
        if last {
            // Its task ends when it has stored what it was given.
            self.attempts.remove(&job);
        }
        sent
    }

    async fn send(&mut self, message: &ServerMessage) -> Result<(), &'static str> {
        let bytes = self.encoding.encode(message);
        let frame = match self.encoding {
            Encoding::MsgPack => Message::Binary(bytes.into()),
            Encoding::Json => Message::Text(String::from_utf8(bytes).map_err(|_| "JSON is UTF-8")?.into()),
        };
        match tokio::time::timeout(SEND_TIMEOUT, self.socket.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("cannot send"),
            Err(_) => {
                let builder = self.builder.as_ref().map(|(builder, _)| builder.0);
                // It would not read a reason either.
                tracing::info!(connection = self.id, builder, "dropping a builder that takes nothing");
                metrics::counter!("cratemill_builder_closes_total", "reason" => "takes_nothing").increment(1);
                Err("the builder takes nothing")
            }
        }
    }

    async fn close(&mut self, reason: CloseReason, message: String) -> Result<(), &'static str> {
        let builder = self.builder.as_ref().map(|(builder, _)| builder.0);
        tracing::info!(connection = self.id, builder, ?reason, message, "closing a builder's connection");
        metrics::counter!("cratemill_builder_closes_total", "reason" => reason_name(reason)).increment(1);
        let code = reason.code();
        let frame_reason = reason_name(reason);
        self.send(&ServerMessage::Close { reason, message }).await?;
        let frame = Message::Close(Some(CloseFrame { code, reason: frame_reason.into() }));
        let _ = tokio::time::timeout(SEND_TIMEOUT, self.socket.send(frame)).await;
        Err("closed")
    }

    async fn leave(self) {
        let Some((builder, name)) = self.builder else { return };
        self.sockets.connections().remove(builder, &self.id);
        tracing::info!(%builder, name, connection = self.id, "builder disconnected");
        close_session(&self.sockets, builder, &name, &self.id).await;
    }
}

async fn close_session(sockets: &Sockets, builder: BuilderId, name: &str, connection: &str) {
    if let Err(error) = database::close(&sockets.pool, builder, name, connection).await {
        tracing::warn!(%builder, error = format!("{error:#}"), "cannot record yet that a builder left");
        sockets.connections().forget_told();
    }
}

async fn next_frame(socket: &mut WebSocket, from: Option<Instant>) -> Option<Result<Message, axum::Error>> {
    if let Some(from) = from {
        tokio::time::sleep_until(from.into()).await;
    }
    socket.recv().await
}

async fn place_wanted(place: Option<&Place>) {
    match place {
        Some(place) => place.wanted().await,
        None => std::future::pending().await,
    }
}

fn reason_name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::UnknownKey => "unknown_key",
        CloseReason::Disabled => "disabled",
        CloseReason::BadSignature => "bad_signature",
        CloseReason::UnsupportedVersion => "unsupported_version",
        CloseReason::Protocol => "protocol",
        CloseReason::FrameTooLarge => "frame_too_large",
        CloseReason::Flood => "flood",
        CloseReason::LoginTimeout => "login_timeout",
        CloseReason::Silent => "silent",
        CloseReason::Superseded => "superseded",
        CloseReason::Draining => "draining",
        CloseReason::Internal => "internal",
    }
}

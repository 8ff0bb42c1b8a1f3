//! The thin shell around the session: one `select!` loop that does its I/O, and the tasks of running attempts.

use crate::{
    backoff::Backoff,
    connection::{self, Connection, Incoming},
    events::{Events, News, UPDATES, Update},
    job::{self, Context, Control},
    load,
    session::{Effect, Exit, Finished, Input, JobLimits, Session, Settings},
    stop::{self, Stopper},
};
use cratemill_protocol::{
    Attempt, FailureClass, JobId, Outcome,
    builder::{AUTH_NAMESPACE, Challenge, ClientMessage, Heartbeat, Job, JobRef},
    token::Token,
};
use futures_util::future::BoxFuture;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(30);
/// With attempts under way there are so many dials in the time of a lease: one that was renewed right before the service
/// was away for half of it is resumed before it runs out.
const DIALS_PER_LEASE: u32 = 6;
/// A connection that lasted this long was a good one: the next retry comes soon again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Aborted attempts end within this, or the program ends without them; their sandboxes die with it.
const ABORT_WAIT: Duration = Duration::from_secs(10);

/// How the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the server refuses this builder: {message}")]
    Refused { message: String },
    #[error(
        "the server calls itself {called:?}, not {expected:?}: nothing was signed for it. If that is its name, give --server-name"
    )]
    WrongServer { called: String, expected: String },
    #[error("stopped before the running jobs had ended")]
    Aborted,
}

/// The owner's wish to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Finish what runs.
    Drain,
    /// End now.
    Abort,
}

/// A running attempt, as far as the agent steers it.
#[derive(Debug)]
struct Running {
    stopper: Stopper,
    token: watch::Sender<Token>,
    credits: Arc<Semaphore>,
}

enum Link {
    Waiting(Instant),
    Dialling(BoxFuture<'static, Result<Connection, connection::Error>>),
    Up { connection: Box<Connection>, since: Instant },
}

enum LinkEvent {
    DialNow,
    Dialled(Result<Box<Connection>, connection::Error>),
    Incoming(Result<Incoming, connection::Error>),
}

pub struct Agent {
    context: Arc<Context>,
    session: Session,
    running: HashMap<(JobId, Attempt), Running>,
    tasks: JoinSet<()>,
    updates: (mpsc::Sender<Update>, mpsc::Receiver<Update>),
    link: Link,
    backoff: Backoff,
    /// Of the last login.
    lease: Option<Duration>,
    /// On the disk, for one more job.
    has_room: bool,
    drain: Duration,
    drain_deadline: Option<Instant>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Agent {
    pub fn new(context: Arc<Context>, settings: Settings, drain: Duration) -> Self {
        Self {
            context,
            session: Session::new(settings),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            updates: mpsc::channel(UPDATES),
            link: Link::Waiting(Instant::now()),
            backoff: Backoff::new(FIRST_RETRY, MOST_RETRY),
            lease: None,
            has_room: true,
            drain,
            drain_deadline: None,
        }
    }

    /// Works until the owner or the server wants it to end.
    pub async fn run(mut self, mut signals: mpsc::Receiver<Signal>) -> Result<(), Error> {
        let result = loop {
            let deadline = self.session.deadline();
            let step = tokio::select! {
                event = self.link.next() => self.on_link(event).await,
                Some(update) = self.updates.1.recv() => self.on_update(update).await,
                Some(_) = self.tasks.join_next() => None,
                () = until(deadline) => self.feed(Input::Tick).await,
                () = until(self.drain_deadline) => Some(Err(Error::Aborted)),
                Some(signal) = signals.recv() => self.on_signal(signal).await,
            };
            if let Some(result) = step {
                break result;
            }
        };
        self.stop(matches!(result, Err(Error::Aborted))).await;
        result
    }

    /// An early end hands running attempts back, so that they need not wait for their leases to run out.
    async fn stop(mut self, early: bool) {
        for running in self.running.values() {
            running.stopper.stop(Duration::ZERO);
        }
        // Attempts wait for nobody any more.
        self.updates.1.close();
        let ended = timeout(ABORT_WAIT, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("Some attempts did not end in time; their sandboxes die with this process");
        }
        if let Link::Up { mut connection, .. } = self.link {
            let goodbye =
                ClientMessage::Goodbye { why: "the builder stops before its jobs have ended".into() };
            if early && let Err(error) = connection.send(&goodbye).await {
                tracing::debug!(%error, "No goodbye");
            }
            connection.close().await;
        }
    }

    async fn on_link(&mut self, event: LinkEvent) -> Option<Result<(), Error>> {
        match event {
            LinkEvent::DialNow => {
                self.link = Link::Dialling(Box::pin(Connection::dial(self.context.server.socket_url())));
                None
            }
            LinkEvent::Dialled(Ok(connection)) => {
                self.link = Link::Up { connection, since: Instant::now() };
                let room = self.look_for_room();
                self.feed_all([room, Input::Connected]).await
            }
            LinkEvent::Dialled(Err(error)) => {
                self.redial(&format!("cannot connect: {error}"), Duration::ZERO);
                None
            }
            LinkEvent::Incoming(Ok(Incoming::Message(message))) => self.feed(Input::Received(message)).await,
            LinkEvent::Incoming(Ok(Incoming::Alive)) => self.feed(Input::Alive).await,
            LinkEvent::Incoming(Err(error)) => self.lost(&error).await,
        }
    }

    async fn lost(&mut self, error: &connection::Error) -> Option<Result<(), Error>> {
        self.redial(&format!("the connection is lost: {error}"), Duration::ZERO);
        self.feed(Input::Disconnected).await
    }

    fn redial(&mut self, why: &str, at_least: Duration) {
        if let Link::Up { since, .. } = &self.link
            && since.elapsed() > STABLE_AFTER
        {
            self.backoff.reset();
        }
        let lease = self.lease.filter(|_| self.session.attempts().next().is_some());
        let delay = self.backoff.next_delay_within(longest_retry(lease)).max(at_least);
        tracing::warn!(
            retry_ms = delay.as_millis(),
            "Not connected to {}: {why}",
            self.context.server.expected_name()
        );
        self.link = Link::Waiting(Instant::now() + delay);
    }

    async fn on_update(&mut self, update: Update) -> Option<Result<(), Error>> {
        match update.news {
            News::Event(event) => self.feed(Input::Event(update.job, event)).await,
            News::Finished(finished) => {
                if self.running.remove(&key(update.job)).is_some() {
                    log_outcome(update.job, &finished.outcome);
                    return self.feed(Input::Finished(update.job, finished)).await;
                }
                None
            }
        }
    }

    async fn on_signal(&mut self, signal: Signal) -> Option<Result<(), Error>> {
        match signal {
            Signal::Abort => Some(Err(Error::Aborted)),
            Signal::Drain => {
                let running = self.session.attempts().count();
                tracing::info!(running, deadline_s = self.drain.as_secs(), "Draining: finishing what runs");
                self.drain_deadline = Some(Instant::now() + self.drain);
                self.feed(Input::Drain).await
            }
        }
    }

    /// Gives the session an input and does what it wants; the result, if that is the end.
    async fn feed(&mut self, input: Input) -> Option<Result<(), Error>> {
        self.feed_all([input]).await
    }

    async fn feed_all<const N: usize>(&mut self, inputs: [Input; N]) -> Option<Result<(), Error>> {
        let mut inputs = VecDeque::from(inputs);
        while let Some(input) = inputs.pop_front() {
            // All effects, even when writing fails midway: the session counts on them.
            for effect in self.session.handle(input, Instant::now()) {
                match effect {
                    Effect::Send(message) => inputs.extend(self.write(&message).await),
                    Effect::Heartbeat(running) => {
                        inputs.push_back(self.look_for_room());
                        inputs.extend(self.heartbeat(running).await);
                    }
                    Effect::Sign(challenge) => match self.sign(&challenge).await {
                        Ok(input) => inputs.push_back(input),
                        Err(error) => return Some(Err(error)),
                    },
                    Effect::Start(job, limits) => self.start(*job, limits),
                    Effect::Stop(job, grace) => self.stop_attempt(job, grace),
                    Effect::Renew(job, token) => {
                        if let Some(running) = self.running.get(&key(job)) {
                            running.token.send_replace(token);
                        }
                    }
                    Effect::Credit(job, count) => {
                        if let Some(running) = self.running.get(&key(job)) {
                            running.credits.add_permits(count);
                        }
                    }
                    Effect::Ready(welcome) => {
                        tracing::info!(builder = %welcome.builder, name = welcome.name, "Logged in");
                        self.lease = Some(Duration::from_secs(welcome.lease_s.into()));
                    }
                    Effect::Reconnect { why, at_least } => self.redial(&why, at_least),
                    Effect::Exit(Exit::Drained) => return Some(Ok(())),
                    Effect::Exit(Exit::Refused { message, .. }) => {
                        return Some(Err(Error::Refused { message }));
                    }
                }
            }
        }
        None
    }

    /// Writes if there is a connection; when that fails, the session is to know.
    async fn write(&mut self, message: &ClientMessage) -> Option<Input> {
        let Link::Up { connection, .. } = &mut self.link else { return None };
        let error = connection.send(message).await.err()?;
        self.redial(&format!("the connection is lost: {error}"), Duration::ZERO);
        Some(Input::Disconnected)
    }

    /// Says in the log when it changes.
    fn look_for_room(&mut self) -> Input {
        let reserve_bytes = self.context.sandbox.reserve_bytes;
        let has_room = load::has_room(self.context.work.root(), reserve_bytes);
        if has_room != self.has_room {
            self.has_room = has_room;
            let reserve_mib = reserve_bytes / (1 << 20);
            if has_room {
                tracing::info!(reserve_mib, "The disk has room again: jobs are taken");
            } else {
                tracing::warn!(
                    reserve_mib,
                    "The disk is almost full: no new job until twice the reserve is free"
                );
            }
        }
        if !has_room {
            self.context.work.make_room();
        }
        Input::Room(has_room)
    }

    async fn heartbeat(&mut self, running: Vec<JobRef>) -> Option<Input> {
        let load = load::measure(self.context.work.root());
        let lost = self.write(&ClientMessage::Heartbeat(Heartbeat { load, running })).await;
        if lost.is_some() {
            return lost;
        }
        let Link::Up { connection, .. } = &mut self.link else { return None };
        let error = connection.ping().await.err()?;
        self.redial(&format!("the connection is lost: {error}"), Duration::ZERO);
        Some(Input::Disconnected)
    }

    async fn sign(&mut self, challenge: &Challenge) -> Result<Input, Error> {
        let server = &self.context.server;
        if !server.is_called(&challenge.server) {
            let called = challenge.server.chars().take(200).collect();
            return Err(Error::WrongServer { called, expected: server.expected_name() });
        }
        let text = challenge.signed_bytes(&self.context.identity.fingerprint());
        match self.context.identity.sign(AUTH_NAMESPACE, text).await {
            Ok(signature) => Ok(Input::Signed(signature)),
            Err(error) => {
                self.redial(&format!("cannot log in: {error:#}"), Duration::ZERO);
                Ok(Input::Disconnected)
            }
        }
    }

    fn start(&mut self, job: Job, limits: JobLimits) {
        let job_ref = JobRef { job: job.id, attempt: job.attempt };
        tracing::info!(
            job = %job.id, attempt = %job.attempt, krate = %job.krate, version = job.version, kind = %job.kind,
            target = %job.target, "Attempt started"
        );
        let (events, credits) = Events::new(job_ref, self.updates.0.clone());
        let (stopper, stop) = stop::channel();
        let (token, tokens) = watch::channel(job.token.clone());
        let control = Control { stop, token: tokens, limits };
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            // A task of its own: whatever goes wrong in there, the attempt gets an outcome.
            let attempt = tokio::spawn(job::run(context, job, control, events.clone()));
            if let Err(error) = attempt.await {
                tracing::error!(job = %job_ref.job, attempt = %job_ref.attempt, %error, "An attempt's task failed");
                // Nobody listens only when the agent ends.
                drop(events.finish(Finished::failed(FailureClass::Infrastructure, "the builder failed")).await);
            }
        });
        self.running.insert(key(job_ref), Running { stopper, token, credits });
    }

    /// Its outcome is welcome if the session still knows it; events of one that is lost go nowhere.
    fn stop_attempt(&mut self, job: JobRef, grace: Duration) {
        let known = self.session.attempts().any(|known| known == job);
        let Some(running) = self.running.get(&key(job)) else { return };
        tracing::info!(job = %job.job, attempt = %job.attempt, "Attempt is to stop");
        running.stopper.stop(grace);
        if !known {
            running.credits.close();
            self.running.remove(&key(job));
        }
    }
}

impl Link {
    /// Safe to drop and call again.
    async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Waiting(at) => {
                sleep_until((*at).into()).await;
                LinkEvent::DialNow
            }
            Self::Dialling(dialling) => LinkEvent::Dialled(dialling.await.map(Box::new)),
            Self::Up { connection, .. } => LinkEvent::Incoming(connection.receive().await),
        }
    }
}

/// `lease` is that of attempts under way.
fn longest_retry(lease: Option<Duration>) -> Duration {
    lease.map_or(MOST_RETRY, |lease| (lease / DIALS_PER_LEASE).clamp(FIRST_RETRY, MOST_RETRY))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn key(job: JobRef) -> (JobId, Attempt) {
    (job.job, job.attempt)
}

fn log_outcome(job: JobRef, outcome: &Outcome) {
    let (id, attempt) = (job.job, job.attempt);
    match outcome {
        Outcome::Succeeded { timings } => {
            tracing::info!(job = %id, %attempt, cargo_ms = timings.cargo_ms, "Attempt succeeded");
        }
        Outcome::Failed { class, message, .. } => {
            tracing::info!(job = %id, %attempt, %class, "Attempt failed: {message}");
        }
        Outcome::Cancelled => tracing::info!(job = %id, %attempt, "Attempt cancelled"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_under_way_bring_a_builder_back_within_their_lease() {
        let retry = |lease_s| longest_retry(Some(Duration::from_secs(lease_s)));
        assert_eq!(longest_retry(None), MOST_RETRY);
        assert_eq!(retry(60), Duration::from_secs(10));
        assert_eq!((retry(0), retry(3_600)), (FIRST_RETRY, MOST_RETRY));
    }
}

//! The connection to NATS, and publishing that returns once the message is stored.

use crate::{backoff::Backoff, config::NatsUrl};
use anyhow::Context as _;
use async_nats::{
    Client, ConnectOptions, HeaderMap,
    connection::State,
    jetstream::{
        self,
        context::{GetStreamErrorKind, PublishAckFuture, PublishError, PublishErrorKind},
    },
};
use bytes::Bytes;
use cratemill_protocol::subjects;
use std::time::Duration;
use tokio::time::Instant;

/// One wait for an acknowledgement; a node that lost its leader never answers.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Publishes under way per process before the next one waits.
const MAX_ACKS_PENDING: usize = 8_192;

/// A handle to the bus; clones share one connection.
#[derive(Debug, Clone)]
pub struct Bus {
    pub client: Client,
    pub jetstream: jetstream::Context,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message may or may not be stored; publishing it again with the same id is safe.
    #[error("the bus did not store the message in time: {0}")]
    Unavailable(String),
    /// The stream is full or refuses the message.
    #[error("the bus refused the message: {0}")]
    Refused(String),
}

/// Where a message stands in its stream.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    pub sequence: u64,
    /// The stream had this message id already.
    pub duplicate: bool,
}

/// A message for [`Bus::send_behind`].
#[derive(Debug, Clone)]
pub struct Numbered {
    pub id: String,
    pub payload: Bytes,
}

/// Messages on their way to their places in a stream.
#[derive(Debug)]
pub struct Sent {
    acks: Vec<(u64, PublishAckFuture)>,
}

impl Sent {
    /// Once the stream has them all, where they belong. After an error any number of the first may be there.
    pub async fn stored(self) -> Result<(), Error> {
        for (expected, ack) in self.acks {
            let ack = ack.await.map_err(|error| unavailable(&error))?;
            if ack.duplicate || ack.sequence != expected {
                return Err(Error::Refused(format!("message {expected} is at {}", ack.sequence)));
            }
        }
        Ok(())
    }
}

fn unavailable(error: &PublishError) -> Error {
    Error::Unavailable(error.to_string())
}

impl Bus {
    /// Connects in the background and for as long as the process lives: a bus that is away is not an error here.
    pub async fn connect(url: &NatsUrl, name: &str) -> anyhow::Result<Self> {
        let server = url.servers.first();
        let user = server.and_then(async_nats::ServerAddr::username).unwrap_or(name);
        // The client does not take them from the URL by itself.
        let options = match server.and_then(async_nats::ServerAddr::password) {
            Some(password) => ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned()),
            None => ConnectOptions::new(),
        };
        let client = options
            .name(name)
            // Each user may listen only below its own prefix, so that none can read another's answers.
            .custom_inbox_prefix(format!("_INBOX.{user}"))
            .retry_on_initial_connect()
            // Which servers there are the operator says: what a server takes for its address may not lead to it.
            .ignore_discovered_servers()
            .connection_timeout(Duration::from_secs(3))
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(|attempts| Duration::from_millis(50) * (1 << attempts.clamp(0, 6)))
            .event_callback(async |event| tracing::info!(%event, "bus connection"))
            .connect(url.servers.clone())
            .await
            .context("cannot set up the bus connection")?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(Duration::from_secs(5))
            .ack_timeout(ACK_TIMEOUT)
            .max_ack_inflight(MAX_ACKS_PENDING)
            .build(client.clone());
        Ok(Self { client, jetstream })
    }

    /// For `/readyz`.
    pub fn check(&self) -> Result<(), String> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            state => Err(format!("the connection is {state}")),
        }
    }

    /// Returns once the server has taken every subscription made before: it answers a question on the same connection.
    /// Flushing is not enough, which only empties our own buffer.
    pub async fn settle(&self) -> Result<(), Error> {
        match self.jetstream.get_stream(subjects::EVENTS_STREAM).await {
            Ok(_) => Ok(()),
            // An answer all the same: nobody has made the stream yet.
            Err(error) if matches!(error.kind(), GetStreamErrorKind::JetStream(_)) => Ok(()),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }

    /// Says something that whoever misses it finds out by itself: nothing if the bus is away.
    pub async fn hint(&self, subject: &'static str) {
        self.hint_of(subject, String::new()).await;
    }

    /// Publishes until the stream has it, with the same id at each try, for at most `patience`.
    pub async fn store(
        &self,
        subject: &str,
        id: &str,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Stored, Error> {
        let deadline = Instant::now() + patience;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let error =
                match tokio::time::timeout_at(deadline, self.try_store(subject, id, payload.clone())).await {
                    Ok(Ok(stored)) => return Ok(stored),
                    Ok(Err(Error::Refused(why))) => return Err(Error::Refused(why)),
                    Ok(Err(error)) => error,
                    Err(_) => return Err(Error::Unavailable("no acknowledgement".into())),
                };
            let wait = backoff.next_wait();
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            tracing::warn!(subject, %error, "publishing again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends these to stand right behind message `last` of the stream, one behind the other; the stream takes none of them
    /// behind another message. After an error any number of the first may be there.
    pub async fn send_behind(
        &self,
        subject: &str,
        last: u64,
        messages: Vec<Numbered>,
    ) -> Result<Sent, Error> {
        let mut acks = Vec::with_capacity(messages.len());
        for (last, Numbered { id, payload }) in (last..).zip(messages) {
            let mut headers = HeaderMap::new();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_SEQUENCE, last.to_string());
            let sent = self.jetstream.publish_with_headers(subject.to_owned(), headers, payload).await;
            acks.push((last + 1, sent.map_err(|error| unavailable(&error))?));
        }
        Ok(Sent { acks })
    }

    /// Stores these, each at the end of its stream: in this order, unless the bus is away meanwhile, when some are sent again.
    pub async fn store_in_order(
        &self,
        messages: Vec<(String, Numbered)>,
        patience: Duration,
    ) -> Vec<Result<Stored, Error>> {
        let mut sent = Vec::with_capacity(messages.len());
        for (subject, Numbered { id, payload }) in messages {
            let mut headers = HeaderMap::new();
            headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
            // One behind the other: who waits for all at once may be woken in any order.
            let ack = self.jetstream.publish_with_headers(subject.clone(), headers, payload.clone()).await;
            sent.push((subject, id, payload, ack));
        }
        let mut stored = Vec::with_capacity(sent.len());
        for (subject, id, payload, ack) in sent {
            let ack = match ack {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            stored.push(match ack {
                Ok(ack) => Ok(Stored { sequence: ack.sequence, duplicate: ack.duplicate }),
                Err(_) => self.store(&subject, &id, payload, patience).await,
            });
        }
        stored
    }

    /// As [`Bus::hint`], with something to say.
    pub async fn hint_of(&self, subject: &'static str, what: String) {
        if self.check().is_ok()
            && let Err(error) = self.client.publish(subject, what.into()).await
        {
            tracing::debug!(subject, %error, "a hint is lost");
        }
    }

    async fn try_store(&self, subject: &str, id: &str, payload: Bytes) -> Result<Stored, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        let sent = self.jetstream.publish_with_headers(subject.to_owned(), headers, payload).await;
        let ack = match sent {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match ack {
            Ok(ack) => Ok(Stored { sequence: ack.sequence, duplicate: ack.duplicate }),
            Err(error) if error.kind() == PublishErrorKind::Other && is_refusal(&error) => {
                Err(Error::Refused(error.to_string()))
            }
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }
}

/// A stream that is full says so with an error of its own; a retry within a request cannot help.
fn is_refusal(error: &jetstream::context::PublishError) -> bool {
    let text = format!("{error:?}");
    ["maximum bytes exceeded", "maximum messages exceeded", "message size exceeds"]
        .iter()
        .any(|m| text.contains(m))
}

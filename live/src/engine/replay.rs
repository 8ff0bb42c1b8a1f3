//! Reads a range of a stream again, through whatever happens to the bus meanwhile.
//!
//! An ephemeral consumer with one filter (NATS 2.9 ignores more than one). A connection that breaks, a server that
//! restarts or a message that gets lost on the way is noticed, and the read continues after the last message.

use crate::engine::Source;
use anyhow::{Context as _, bail};
use async_nats::{
    HeaderMap, header,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        stream::RawMessageErrorKind,
    },
};
use bytes::Bytes;
use cratemill_service::{backoff::Backoff, streams::TOPIC_MESSAGES};
use futures_util::StreamExt as _;
use std::time::Duration;

/// Messages asked for at once: enough to fill the pipe, few enough to wait in memory for one slow viewer.
const BATCH: usize = 256;
/// And their bytes.
const BATCH_BYTES: usize = 1 << 20;
/// A server that has a message for us sends it within this time, or is gone.
const PATIENCE: Duration = Duration::from_secs(3);
/// A consumer that is not read from for this long is the server's to remove.
const INACTIVE: Duration = Duration::from_secs(10);

pub struct Replay {
    jetstream: jetstream::Context,
    source: Source,
    filter: String,
    /// Whatever the stream has: then each number has its message.
    reads_all: bool,
    /// The first sequence that was not read.
    next: u64,
    to: u64,
    open: Option<Open>,
    /// It was read, and something before it is gone: first that is told.
    kept: Option<Stored>,
    /// As long as the stream is no further, no user topic has lost what was to be read.
    safe_until: Option<u64>,
    backoff: Backoff,
}

#[derive(Debug)]
pub enum Read {
    Message(Stored),
    /// The stream does not have everything any more; what it has follows, or came before.
    Expired {
        /// From here on there may be everything.
        next: u64,
    },
}

#[derive(Debug)]
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    /// Its id, where only heads are followed.
    pub payload: Bytes,
}

/// Empty where there is none.
pub fn message_id(headers: Option<&HeaderMap>) -> &str {
    headers.and_then(|headers| headers.get(header::NATS_MESSAGE_ID)).map_or("", |id| id.as_str())
}

struct Open {
    consumer: PullConsumer,
    /// Messages that the server has for this consumer.
    pending: u64,
    batch: Option<pull::Batch>,
    /// Deliveries are numbered without gaps.
    deliveries: u64,
    batches: u64,
}

/// The first message that a stream has, and the last it ever had.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub first: u64,
    pub last: u64,
}

pub async fn bounds(jetstream: &jetstream::Context, source: Source) -> anyhow::Result<Bounds> {
    let info = tokio::time::timeout(PATIENCE, jetstream.get_stream(source.stream())).await;
    let stream = info.context("no answer about the stream")?.context("cannot look at the stream")?;
    let state = &stream.cached_info().state;
    Ok(Bounds { first: state.first_sequence, last: state.last_sequence })
}

/// The same, as soon as the bus answers.
pub async fn bounds_at_last(jetstream: &jetstream::Context, source: Source) -> Bounds {
    let mut backoff = backoff();
    loop {
        match bounds(jetstream, source).await {
            Ok(bounds) => return bounds,
            Err(error) => {
                tracing::debug!(stream = source.stream(), error = format!("{error:#}"), "asking again");
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// A bus that comes back is used within two seconds.
fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, filter, next, to, .. } = self;
        write!(f, "Replay({source:?} {filter} {next}..={to})")
    }
}

impl Replay {
    /// Everything that matches `filter` after `from`, up to and with `to`.
    pub fn new(jetstream: &jetstream::Context, source: Source, filter: String, from: u64, to: u64) -> Self {
        Self {
            jetstream: jetstream.clone(),
            source,
            filter,
            reads_all: false,
            next: from.saturating_add(1),
            to,
            open: None,
            kept: None,
            safe_until: None,
            backoff: backoff(),
        }
    }

    /// Everything of the stream, where what is gone is known exactly.
    pub fn all(jetstream: &jetstream::Context, source: Source, from: u64, to: u64) -> Self {
        Self { reads_all: true, ..Self::new(jetstream, source, source.everything().to_owned(), from, to) }
    }

    /// None at the end of the range. It waits for as long as the bus is away.
    pub async fn next(&mut self) -> Option<Read> {
        if let Some(read) = self.read_on().await {
            return Some(read);
        }
        let safe_until = self.safe_until.take()?;
        (bounds_at_last(&self.jetstream, self.source).await.last > safe_until)
            .then_some(Read::Expired { next: self.next })
    }

    async fn read_on(&mut self) -> Option<Read> {
        while self.next <= self.to {
            match self.try_next().await {
                Ok(Some(Read::Message(stored))) => {
                    self.next = stored.sequence + 1;
                    self.backoff.reset();
                    return (stored.sequence <= self.to).then_some(Read::Message(stored));
                }
                Ok(other) => return other,
                Err(error) => {
                    self.open = None;
                    let stream = self.source.stream();
                    tracing::debug!(stream, next = self.next, error = format!("{error:#}"), "reading again");
                    tokio::time::sleep(self.backoff.next_wait()).await;
                }
            }
        }
        None
    }

    async fn try_next(&mut self) -> anyhow::Result<Option<Read>> {
        if self.open.is_none() {
            let bounds = bounds(&self.jetstream, self.source).await?;
            // Logs leave the stream one by one, for the archive; the others go by age.
            if self.source != Source::Logs && self.next < bounds.first {
                self.next = bounds.first;
                return Ok(Some(Read::Expired { next: self.next }));
            }
            let open = self.reopen().await?;
            let pending = open.pending;
            self.open = Some(open);
            if self.source == Source::Topics && !self.reads_all && self.is_overfull(pending, bounds.last) {
                return Ok(Some(Read::Expired { next: self.next }));
            }
        }
        if let Some(kept) = self.kept.take() {
            return Ok(Some(Read::Message(kept)));
        }
        let Some(open) = &mut self.open else { return Ok(None) };
        let was = open.batches;
        let stored = open.next(self.source.heads_only()).await?;
        let begins = open.batches != was;
        // What the server removes while it is read is left out without a word: nothing of a batch may be older than it.
        let skips = stored.as_ref().is_none_or(|stored| begins && stored.sequence > self.next);
        if skips && self.source != Source::Logs {
            let first = bounds(&self.jetstream, self.source).await?.first;
            if first > self.next {
                self.next = stored.map_or(first, |stored| stored.sequence.min(first));
                self.open = None;
                return Ok(Some(Read::Expired { next: self.next }));
            }
        }
        let Some(stored) = stored else {
            self.check_end().await?;
            // Who reads all has a number for each message, and these have none any more.
            let lost = self.reads_all && self.source != Source::Logs && self.next <= self.to;
            return Ok(lost.then(|| {
                self.next = self.to.saturating_add(1);
                Read::Expired { next: self.next }
            }));
        };
        if self.reads_all && self.source != Source::Logs && stored.sequence > self.next {
            self.next = stored.sequence;
            self.kept = Some(stored);
            return Ok(Some(Read::Expired { next: self.next }));
        }
        Ok(Some(Read::Message(stored)))
    }

    /// A user topic loses its oldest message when it has more than are kept of one. What it lost was to be read only if
    /// as many as are kept came after `next`: those that are pending, and those that come while they are read. Where
    /// several topics are read it may be none that has so many.
    fn is_overfull(&mut self, pending: u64, last: u64) -> bool {
        let room = u64::from(TOPIC_MESSAGES).saturating_sub(pending);
        let safe_until = last.saturating_add(room);
        self.safe_until = Some(self.safe_until.map_or(safe_until, |safe| safe.min(safe_until)));
        room == 0
    }

    /// A consumer's count of what is pending is an estimate while messages arrive; the stream itself knows.
    async fn check_end(&self) -> anyhow::Result<()> {
        let next = async {
            let stream = self.jetstream.get_stream_no_info(self.source.stream()).await?;
            match stream.get_first_raw_message_by_subject(&self.filter, self.next).await {
                Ok(message) => anyhow::Ok(Some(message.sequence)),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        match tokio::time::timeout(PATIENCE, next).await.context("no answer about what follows")?? {
            Some(sequence) if sequence <= self.to => bail!("the consumer has left out message {sequence}"),
            _ => Ok(()),
        }
    }

    async fn reopen(&self) -> anyhow::Result<Open> {
        let config = pull::Config {
            filter_subject: self.filter.clone(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
            ack_policy: AckPolicy::None,
            headers_only: self.source.heads_only(),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let create = async {
            let stream = self.jetstream.get_stream_no_info(self.source.stream()).await?;
            anyhow::Ok(stream.create_consumer(config).await?)
        };
        let consumer = tokio::time::timeout(PATIENCE, create).await.context("no consumer in time")??;
        let pending = consumer.cached_info().num_pending;
        Ok(Open { consumer, pending, batch: None, deliveries: 0, batches: 0 })
    }
}

impl Open {
    async fn next(&mut self, heads_only: bool) -> anyhow::Result<Option<Stored>> {
        // Twice: a batch that is used up gives nothing, the one after it must.
        for _ in 0..2 {
            if self.pending == 0 {
                return Ok(None);
            }
            let batch = match &mut self.batch {
                Some(batch) => batch,
                none => {
                    self.batches += 1;
                    none.insert(fetch(&self.consumer).await?)
                }
            };
            match tokio::time::timeout(PATIENCE, batch.next()).await.context("the server went silent")? {
                Some(message) => {
                    let message = message.map_err(|error| anyhow::anyhow!(error))?;
                    return self.accept(&message, heads_only).map(Some);
                }
                None => self.batch = None,
            }
        }
        bail!("{} messages are pending and none came", self.pending)
    }

    fn accept(&mut self, message: &jetstream::Message, heads_only: bool) -> anyhow::Result<Stored> {
        let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
        self.deliveries += 1;
        if info.consumer_sequence != self.deliveries {
            bail!("delivery {} came, {} was expected", info.consumer_sequence, self.deliveries);
        }
        self.pending = info.pending;
        Ok(Stored {
            sequence: info.stream_sequence,
            subject: message.subject.to_string(),
            payload: if heads_only {
                Bytes::copy_from_slice(message_id(message.headers.as_ref()).as_bytes())
            } else {
                message.payload.clone()
            },
        })
    }
}

async fn fetch(consumer: &PullConsumer) -> anyhow::Result<pull::Batch> {
    let fetch = consumer.fetch().max_messages(BATCH).max_bytes(BATCH_BYTES).messages();
    Ok(tokio::time::timeout(PATIENCE, fetch).await.context("the bus takes no request")??)
}

//! Publishes numbered events at a steady rate, each with the time at which it is sent. All servers get the same text.

use super::clock::now_us;
use anyhow::{Context, Result};
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use cratemill_protocol::{
    CrateName, VersionId,
    bus::{self, DomainEvent, EventMessage, VersionChange, VersionChanged},
    subjects,
};
use cratemill_service::bus::Bus;
use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Events that no answer has come for yet; the next one waits, and is stamped when it is sent.
const IN_FLIGHT: usize = 256;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Publisher {
    to: To,
    /// One is the queue; more are crates, in turns.
    topics: usize,
    /// Events so far.
    sent: u64,
}

enum To {
    Bus { bus: Box<Bus>, acks: VecDeque<PublishAckFuture> },
    Http { path: String, writer: OwnedWriteHalf, places: Arc<Semaphore>, _reader: AbortOnDropHandle<()> },
}

impl Publisher {
    pub(super) fn bus(bus: Bus, topics: usize) -> Self {
        Self { to: To::Bus { bus: Box::new(bus), acks: VecDeque::new() }, topics, sent: 0 }
    }

    /// POSTs to a path, on one connection, without waiting for each answer.
    pub(super) async fn http(address: SocketAddr, path: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot publish")?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let places = Arc::new(Semaphore::new(IN_FLIGHT));
        let answers = answers(reader, Arc::clone(&places));
        let reader = AbortOnDropHandle::new(tokio::spawn(answers));
        Ok(Self {
            to: To::Http { path: path.to_owned(), writer, places, _reader: reader },
            topics: 1,
            sent: 0,
        })
    }

    /// Of the topic whose turn it is. Returns its number there, from 1.
    pub(super) async fn send(&mut self) -> Result<u64> {
        let topics = u64::try_from(self.topics)?;
        let (topic, number) = (self.sent % topics, self.sent / topics + 1);
        self.sent += 1;
        match &mut self.to {
            To::Bus { bus, acks } => {
                if acks.len() >= IN_FLIGHT
                    && let Some(oldest) = acks.pop_front()
                {
                    acknowledged(oldest).await?;
                }
                let (subject, event) = if topics == 1 { queue(number) } else { version(topic, number)? };
                let payload = bus::encode(&EventMessage { at_ms: i64::try_from(now_us())?, event });
                acks.push_back(bus.jetstream.publish(subject, Bytes::from(payload)).await?);
            }
            To::Http { path, writer, places, .. } => {
                let place = timeout(ANSWER_TIMEOUT, places.acquire()).await.context("no answer")?;
                place.context("the server refuses events")?.forget();
                writer.write_all(&post(path, number, now_us())).await?;
            }
        }
        Ok(number)
    }

    /// The number that was sent last, of the topic that had the last turn.
    pub(super) fn last(&self) -> u64 {
        self.sent.div_ceil(u64::try_from(self.topics).unwrap_or(1))
    }

    /// Waits until every event has its answer.
    pub(super) async fn flush(&mut self) -> Result<()> {
        match &mut self.to {
            To::Bus { acks, .. } => {
                while let Some(ack) = acks.pop_front() {
                    acknowledged(ack).await?;
                }
            }
            To::Http { places, .. } => {
                let all = places.acquire_many(u32::try_from(IN_FLIGHT)?);
                let _all = timeout(ANSWER_TIMEOUT, all).await.context("no answer")??;
            }
        }
        Ok(())
    }

    /// Publishes until it is stopped. `per_s` events each second, late ones at once.
    pub(super) fn start(mut self, per_s: u32) -> Running {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let between = Duration::from_secs(1) / per_s;
            let mut due = Instant::now();
            while stopped.run_until_cancelled(sleep_until(due)).await.is_some() {
                self.send().await?;
                due += between;
            }
            self.flush().await?;
            Ok(self)
        });
        Running { stop, task }
    }
}

/// A publisher at work.
pub(super) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<Publisher>>,
}

impl Running {
    /// Returns once everything is acknowledged.
    pub(super) async fn stop(self) -> Result<Publisher> {
        self.stop.cancel();
        self.task.await.context("the publisher broke")?
    }
}

async fn acknowledged(ack: PublishAckFuture) -> Result<()> {
    timeout(ANSWER_TIMEOUT, ack).await.context("no answer")?.context("the bus did not take an event")?;
    Ok(())
}

/// Of each answer the status; after one that is no success nothing more is sent.
async fn answers(reader: OwnedReadHalf, places: Arc<Semaphore>) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A body need not end its last line.
        match line.split_once("HTTP/1.1 ") {
            Some((_, status)) if status.starts_with('2') => places.add_permits(1),
            Some(_) => break,
            None => {}
        }
    }
    places.close();
}

fn queue(number: u64) -> (String, DomainEvent) {
    (subjects::QUEUE_EVENT.to_owned(), DomainEvent::Queue { queued: number, running: 0 })
}

fn version(topic: u64, number: u64) -> Result<(String, DomainEvent)> {
    let krate = CrateName::parse(format!("c{topic}"))?;
    let id = VersionId(i64::try_from(number)?);
    let subject = subjects::version_event(&krate, id);
    let event = VersionChanged { krate, version: "1.0.0".into(), id, change: VersionChange::Yanked };
    Ok((subject, DomainEvent::Version(event)))
}

/// The same text that our gateway makes of an event of the queue.
fn post(path: &str, number: u64, at_us: u64) -> Vec<u8> {
    let body = format!("{{\"type\":\"queue\",\"queued\":{number},\"running\":0,\"at_ms\":{at_us}}}");
    let head = format!("POST {path} HTTP/1.1\r\nhost: bench\r\nx-eventsource-event: queue\r\n");
    format!("{head}content-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

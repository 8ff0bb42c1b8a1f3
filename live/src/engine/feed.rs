//! Fills the hub: every message of the followed streams, once and in order, whatever happens to the bus.
//!
//! The streams send what they stored again, with its sequence. A sequence that skips some, or a stream that is further
//! than what arrived (after a reconnect, or when the last messages got lost), is repaired by reading the stream before
//! anything later is let through.

use crate::{
    engine::{
        Source,
        hub::Hub,
        replay::{self, Bounds, Read, Replay},
    },
    metrics,
};
use anyhow::Context as _;
use async_nats::{Message, Subscriber, header};
use cratemill_protocol::subjects;
use cratemill_service::bus::Bus;
use futures_util::{FutureExt as _, StreamExt as _, future::select_all};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often the streams are compared with what arrived: a lost last message is late by twice this at most.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// What a stream said about itself.
#[derive(Debug, Clone, Copy)]
struct Probe {
    last: u64,
    /// Up to here everything should have arrived by now.
    due: u64,
    /// The hub's position before the question.
    position: Option<u64>,
}

/// Messages of one stream that wait while it is read again; what comes on top is read again too.
const WAITING: usize = 16_384;

pub async fn run(bus: Bus, hub: Arc<Hub>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let messages = bus.client.subscribe(subjects::LIVE_ALL).await.context("cannot subscribe")?;
    let (mut lines, mut feeds) = (Vec::new(), Vec::new());
    for &source in hub.sources() {
        let (sender, line) = mpsc::channel(WAITING);
        let feed = Feed { bus: bus.clone(), hub: Arc::clone(&hub), source };
        lines.push((source, sender));
        // A stream that is read again holds up no other one. In one task: waking another thread for each message costs
        // more than what is done with it.
        feeds.push(feed.run(line).boxed());
    }
    tokio::select! {
        () = sort(messages, &lines) => anyhow::bail!("the subscription ended"),
        _ = select_all(feeds) => anyhow::bail!("a feed ended"),
        () = shutdown.cancelled() => Ok(()),
    }
}

/// To each stream's feed what is its own.
async fn sort(mut messages: Subscriber, lines: &[(Source, mpsc::Sender<Live>)]) {
    while let Some(message) = messages.next().await {
        let Some(live) = Live::parse(message) else { continue };
        if let Some((_, line)) = lines.iter().find(|(source, _)| *source == live.source) {
            // Where the line is full there is a gap, which the feed sees.
            let _ = line.try_send(live);
        }
    }
}

/// What a stream sent again.
struct Live {
    source: Source,
    sequence: u64,
    message: Message,
}

impl Live {
    fn parse(message: Message) -> Option<Self> {
        let place = |message: &Message| {
            let headers = message.headers.as_ref()?;
            let source = Source::of_stream(headers.get(header::NATS_STREAM)?.as_str())?;
            let sequence = headers.get(header::NATS_SEQUENCE)?.as_str().parse().ok()?;
            message.subject.starts_with(subjects::LIVE_PREFIX).then_some((source, sequence))
        };
        let Some((source, sequence)) = place(&message) else {
            tracing::warn!(subject = %message.subject, "a message without its place in a stream");
            return None;
        };
        Some(Self { source, sequence, message })
    }

    /// What it says, or its id where that is all that is followed.
    fn payload(&self) -> &[u8] {
        if self.source.heads_only() {
            replay::message_id(self.message.headers.as_ref()).as_bytes()
        } else {
            &self.message.payload
        }
    }

    fn subject(&self) -> &str {
        self.message.subject.strip_prefix(subjects::LIVE_PREFIX).unwrap_or_default()
    }
}

struct Feed {
    bus: Bus,
    hub: Arc<Hub>,
    source: Source,
}

impl Feed {
    /// Until nothing comes any more.
    async fn run(self, mut inbox: mpsc::Receiver<Live>) {
        let (sender, mut probes) = mpsc::channel(1);
        let follow = async {
            loop {
                tokio::select! {
                    // What has arrived is not missing.
                    biased;
                    live = inbox.recv() => match live {
                        Some(live) => self.take(&live).await,
                        None => return,
                    },
                    Some(probe) = probes.recv() => self.compare(probe).await,
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.probe(sender) => {}
        }
    }

    async fn take(&self, live: &Live) {
        let (source, sequence) = (self.source, live.sequence);
        // Until it is known where the stream is, nobody is subscribed.
        let Some(position) = self.hub.position(source) else { return };
        if sequence <= position {
            return;
        }
        if sequence > position + 1 {
            self.repair(position, sequence - 1).await;
        }
        self.hub.publish(source, sequence, live.subject(), live.payload());
    }

    async fn compare(&self, probe: Probe) {
        let (source, Probe { last, due, .. }) = (self.source, probe);
        match self.hub.position(source) {
            None => {
                tracing::info!(stream = source.stream(), sequence = last, "following");
                self.hub.set_position(source, last);
            }
            Some(position) if last < position && probe.position.is_some_and(|before| last < before) => {
                tracing::error!(stream = source.stream(), sequence = last, "the stream began anew");
                self.hub.break_off(source, last);
            }
            Some(position) if position < due => self.repair(position, last).await,
            Some(_) => {}
        }
    }

    /// Publishes what lies after `from`, up to and with `to`; it takes as long as the bus is away.
    async fn repair(&self, from: u64, to: u64) {
        let source = self.source;
        if self.hub.skip(source, to) {
            return;
        }
        tracing::warn!(stream = source.stream(), from, to, "reading what did not arrive");
        metrics::repair(source.stream());
        let mut replay = Replay::all(&self.bus.jetstream, source, from, to);
        while let Some(read) = replay.next().await {
            match read {
                Read::Message(stored) => {
                    self.hub.publish(source, stored.sequence, &stored.subject, &stored.payload);
                }
                // Whoever comes from before it is told too, by its own reading.
                Read::Expired { next } => self.hub.break_off(source, next.saturating_sub(1).min(to)),
            }
        }
        self.hub.set_position(source, to);
        if source == Source::Logs {
            self.hub.repaired(source);
        }
    }

    /// Asks the stream again and again, beside the messages so that a slow answer holds up none.
    async fn probe(&self, probes: mpsc::Sender<Probe>) {
        let mut every = tokio::time::interval(PROBE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut memory = Memory::new(self.source);
        loop {
            every.tick().await;
            let connects = self.bus.client.statistics().connects.load(Ordering::Relaxed);
            let position = self.hub.position(self.source);
            let answer = replay::bounds(&self.bus.jetstream, self.source).await;
            if let Some(probe) = memory.take(answer, position, connects)
                && probes.send(probe).await.is_err()
            {
                return;
            }
        }
    }
}

/// What is remembered of a stream from one question to the next.
#[derive(Debug)]
struct Memory {
    source: Source,
    last: u64,
    /// Connections to the bus that there had been, the current one included.
    connects: u64,
    answers: bool,
}

impl Memory {
    fn new(source: Source) -> Self {
        Self { source, last: 0, connects: 0, answers: true }
    }

    fn take(
        &mut self,
        answer: anyhow::Result<Bounds>,
        position: Option<u64>,
        connects: u64,
    ) -> Option<Probe> {
        let stream = self.source.stream();
        let last = match answer {
            Ok(Bounds { last, .. }) => last,
            Err(error) => {
                if std::mem::replace(&mut self.answers, false) {
                    tracing::warn!(stream, error = format!("{error:#}"), "the stream does not answer");
                }
                return None;
            }
        };
        if !std::mem::replace(&mut self.answers, true) {
            tracing::info!(stream, "the stream answers again");
        }
        // What was stored at the last question has had time to arrive; after a reconnect nothing arrives by itself.
        let due = if self.connects == connects { self.last } else { last };
        (self.last, self.connects) = (last, connects);
        Some(Probe { last, due, position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(memory: &mut Memory, last: u64, connects: u64) -> u64 {
        memory.take(Ok(Bounds { first: 1, last }), Some(0), connects).unwrap().due
    }

    #[test]
    fn what_was_there_at_the_last_question_is_due_and_after_a_reconnect_everything() {
        let mut memory = Memory::new(Source::Events);
        assert_eq!(due(&mut memory, 10, 1), 10);
        assert_eq!(due(&mut memory, 15, 1), 10);
        assert_eq!(due(&mut memory, 15, 1), 15);
        assert!(memory.take(Err(anyhow::anyhow!("away")), Some(0), 1).is_none());
        assert_eq!(due(&mut memory, 20, 2), 20);
        assert_eq!(due(&mut memory, 22, 2), 20);
    }
}

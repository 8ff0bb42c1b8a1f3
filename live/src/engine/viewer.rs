//! One viewer: what it missed, then what comes, without gap or repeat.
//!
//! ```text
//! subscribe at position P -> replay up to P -> take from the hub what came after P -> ...
//!        ^                        |
//!        +---- fell behind -------+   (a replay may take longer than the queue lasts)
//! ```

mod logs;

use crate::{
    engine::{
        Engine, Source,
        archive::Wanted,
        filter::cover,
        frame::{Frame, Message},
        hub::{Delivery, Positions, Subscriber},
        log_job,
        position::{Position, Verdict},
        replay::{self, Read, Replay},
    },
    metrics,
};
use cratemill_protocol::{JobId, subjects, topic::Topic};
use std::{convert::Infallible, sync::Arc};
use tokio::sync::mpsc;

/// How often a viewer may fall behind while it replays: each time it has less to catch up with.
const ROUNDS: usize = 8;

/// What a viewer is to see, and how far it is once it has seen it.
#[derive(Debug)]
pub struct Item {
    pub what: What,
    pub position: Position,
}

#[derive(Debug)]
pub enum What {
    Frame(Arc<Frame>),
    /// Something of this topic is gone for good.
    Reset {
        topic: Topic,
        reason: ResetReason,
    },
    /// Nothing but its position.
    Alive,
    /// The last item.
    Dropped(DropReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// Past the retention of the stream.
    Expired,
    /// No stream was ever at the position that the viewer named.
    Unknown,
    /// The viewer's position could not be read: it is treated as a new viewer.
    Unreadable,
    /// The archive lost it.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It does not read as fast as there is something to read.
    Slow,
    /// The stream does not continue where it was.
    Broken,
}

/// Notices when a viewer has read the past. One that follows a log never has: it may go to the archive at any time.
#[derive(Debug)]
pub struct CaughtUp {
    signs: usize,
    logs: bool,
}

impl CaughtUp {
    pub fn new(topics: &[Topic]) -> Self {
        Self { signs: 0, logs: topics.iter().any(|topic| log_job(topic).is_some()) }
    }

    /// The first sign of life comes before the past, the second behind it.
    pub fn is_now(&mut self, item: &Item) -> bool {
        self.signs += usize::from(matches!(item.what, What::Alive));
        self.signs == 2 && !self.logs
    }
}

#[derive(Debug)]
enum End {
    /// Nobody takes items any more.
    Gone,
    Dropped(DropReason),
}

/// From where on a viewer wants to see its topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// A new viewer: events from now on, logs from their start.
    Now,
    After(Position),
    /// It named a position that nobody can read.
    Unreadable,
}

/// Where a viewer begins.
#[derive(Debug)]
pub struct Start {
    pub topics: Arc<[Topic]>,
    pub since: Since,
    pub subscriber: Subscriber,
    pub positions: Positions,
}

#[derive(Debug)]
pub struct Viewer {
    engine: Arc<Engine>,
    topics: Arc<[Topic]>,
    position: Position,
    items: mpsc::Sender<Item>,
}

impl Viewer {
    /// Sends items until nobody takes them or the viewer is dropped.
    pub async fn run(engine: Arc<Engine>, start: Start, items: mpsc::Sender<Item>) {
        let Start { topics, since, subscriber, positions } = start;
        let unreadable = since == Since::Unreadable;
        let mut position = match since {
            Since::After(position) => position,
            Since::Now | Since::Unreadable => Position { events: positions.events, ..Position::default() },
        };
        // A position from before it followed any says nothing of user topics: they begin now.
        let follows_users = topics.iter().any(|topic| Source::of_topic(topic) == Source::Topics);
        position.topics = follows_users.then(|| position.topics.unwrap_or(positions.topics));
        position.logs.retain(|job, _| topics.contains(&Topic::JobLog(*job)));
        let mut viewer = Self { engine, topics, position, items };
        if let Err(End::Dropped(reason)) = viewer.follow(unreadable, subscriber, positions).await {
            // If this cannot be sent, the viewer is gone and needs no reason.
            let _ = viewer.send(What::Dropped(reason)).await;
        }
    }

    async fn follow(
        &mut self,
        unreadable: bool,
        subscriber: Subscriber,
        positions: Positions,
    ) -> Result<Infallible, End> {
        self.send(What::Alive).await?;
        if unreadable {
            self.reset(&Arc::clone(&self.topics), ResetReason::Unreadable).await?;
        }
        let mut first = Some((subscriber, positions));
        for _ in 0..ROUNDS {
            let Some((subscriber, positions)) =
                first.take().or_else(|| self.engine.hub.subscribe(&self.topics))
            else {
                break;
            };
            self.catch_up(positions).await?;
            if !subscriber.is_behind() {
                return self.live(subscriber).await;
            }
        }
        Err(End::Dropped(DropReason::Slow))
    }

    async fn live(&mut self, mut subscriber: Subscriber) -> Result<Infallible, End> {
        let mut heartbeat = tokio::time::interval(self.engine.heartbeat);
        loop {
            tokio::select! {
                delivery = subscriber.next() => match delivery {
                    Some(Delivery::Frame(frame)) => self.deliver(frame).await?,
                    Some(Delivery::Repaired) => {
                        for job in self.log_jobs() {
                            self.settle(job, Wanted::UntilFirstOnBus).await?;
                        }
                    }
                    Some(Delivery::Broken) => return Err(End::Dropped(DropReason::Broken)),
                    None => return Err(End::Dropped(DropReason::Slow)),
                },
                _ = heartbeat.tick() => {
                    // First the position, then the queue: what was published before is in the one or the other.
                    let positions = self.engine.hub.positions();
                    if let Some(positions) = positions.filter(|_| subscriber.is_empty()) {
                        self.position.reach(Source::Events, positions.events);
                        self.position.reach(Source::Topics, positions.topics);
                    }
                    self.send(What::Alive).await?;
                }
            }
        }
    }

    /// Everything up to `until`.
    async fn catch_up(&mut self, until: Positions) -> Result<(), End> {
        self.catch_up_stream(Source::Events, until.events).await?;
        self.catch_up_stream(Source::Topics, until.topics).await?;
        for job in self.log_jobs() {
            self.catch_up_log(job, until.logs).await?;
        }
        Ok(())
    }

    async fn catch_up_stream(&mut self, source: Source, until: u64) -> Result<(), End> {
        let jetstream = &self.engine.bus.jetstream;
        let topics: Vec<Topic> =
            self.topics.iter().filter(|topic| Source::of_topic(topic) == source).cloned().collect();
        let filters: Vec<String> = topics.iter().map(|topic| topic.source().1).collect();
        let Some(filter) = cover(&filters) else { return Ok(()) };
        let Some(reached) = self.position.of_stream(source) else { return Ok(()) };
        if *reached > until && *reached > replay::bounds_at_last(jetstream, source).await.last {
            *reached = until;
            return self.reset(&topics, ResetReason::Unknown).await;
        }
        if *reached >= until {
            return Ok(());
        }
        metrics::replay(source.name());
        let mut replay = Replay::new(jetstream, source, filter, *reached, until);
        while let Some(read) = replay.next().await {
            match read {
                Read::Expired { .. } => self.reset(&topics, ResetReason::Expired).await?,
                Read::Message(stored) => {
                    if filters.iter().any(|filter| subjects::matches(filter, &stored.subject))
                        && let Some(frame) =
                            Frame::decode(source, stored.sequence, &stored.subject, &stored.payload)
                    {
                        self.deliver(Arc::new(frame)).await?;
                    }
                }
            }
        }
        self.position.reach(source, until);
        Ok(())
    }

    async fn deliver(&mut self, frame: Arc<Frame>) -> Result<(), End> {
        match &frame.message {
            // Nobody follows that in this way.
            Message::Timeline(_) | Message::Issue(_) => return Ok(()),
            Message::Event(_) | Message::User(_) => {
                if !self.position.reach(frame.message.source(), frame.sequence) {
                    return Ok(());
                }
            }
            Message::Log(part) => {
                let mut verdict = self.cursor(part.job).judge(frame.sequence, part);
                if verdict == Verdict::Missing {
                    self.settle(part.job, Wanted::Through(part.attempt)).await?;
                    verdict = self.cursor(part.job).judge(frame.sequence, part);
                }
                if verdict == Verdict::Seen {
                    return Ok(());
                }
                self.position.logs.entry(part.job).or_default().advance(frame.sequence, part);
            }
        }
        self.send(What::Frame(frame)).await
    }

    async fn reset(&mut self, topics: &[Topic], reason: ResetReason) -> Result<(), End> {
        for topic in topics {
            self.send(What::Reset { topic: topic.clone(), reason }).await?;
        }
        Ok(())
    }

    async fn send(&self, what: What) -> Result<(), End> {
        let item = Item { what, position: self.position.clone() };
        self.items.send(item).await.map_err(|_| End::Gone)
    }

    fn log_jobs(&self) -> Vec<JobId> {
        self.topics.iter().filter_map(log_job).collect()
    }
}

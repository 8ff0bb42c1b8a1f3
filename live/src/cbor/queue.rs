//! Groups: each thing that is published to a subscription goes to one member of each of its groups, until that one has
//! acknowledged it.
//!
//! ```text
//! durable consumer of the group -> a task on each node that has members -> the member that holds least -> Ack -> the bus
//!        ^                                                                     | nothing for as long as one may take
//!        +------------------- delivered again, to another member --------------+
//! ```
//! What is not acknowledged in time is the bus's to deliver again: to whichever node asks, which gives it to another member
//! than the one before, if it has another.

use super::{Cbor, Session, work::push};
use crate::{
    dialects::cbor::{self, Code},
    engine::{frame::Issue, replay::message_id},
    reactor::Who,
};
use anyhow::Context as _;
use async_nats::jetstream::{
    self, AckKind,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
};
use cratemill_protocol::{SubscriptionId, publication, subjects};
use cratemill_service::outage::Outage;
use futures_util::StreamExt as _;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// Publications that one member holds at once.
const MAX_HELD: usize = 64;
/// How long a question for more waits for something to come.
const PULL: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(5);
/// How often, and how far apart, what a member did not do is offered to other nodes before it gets it again.
const OFFERS: u8 = 6;
const OFFER: Duration = Duration::from_millis(100);
/// All that is handed out of a group.
const MAX_PENDING: i64 = 10_000;

/// A group of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// Its own: one that is made anew under the same name has another.
    pub(super) id: i64,
    pub(super) subscription: SubscriptionId,
    /// It gets what comes after this message of the stream.
    pub(super) since: u64,
}

type Why = (Code, String);

#[derive(Debug)]
pub(super) struct Queues {
    cbor: Weak<Cbor>,
    ack_wait: Duration,
    groups: Mutex<HashMap<i64, Arc<Active>>>,
    /// Which groups the connections are in that are in any, by session and epoch.
    memberships: Mutex<HashMap<(Uuid, i64), Vec<Group>>>,
}

/// A group that has members here.
#[derive(Debug)]
struct Active {
    group: Group,
    state: Mutex<Members>,
    /// Somebody has room for more, or has come.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Members {
    all: Vec<Member>,

    held: HashMap<Uuid, Held>,
    /// Who held what it did not acknowledge in time.
    lapsed: HashMap<Uuid, Lapsed>,
}

#[derive(Debug, Clone, Copy)]
struct Lapsed {
    session: Uuid,
    since: Instant,
    /// How often it was given back, for a member at another node.
    offered: u8,
}

#[derive(Debug)]
struct Member {
    id: Uuid,
    epoch: i64,
    session: Session,
    who: Who,
}

/// A publication with its holder.
#[derive(Debug)]
struct Held {
    session: Uuid,
    until: Instant,
    message: jetstream::Message,
}

impl Members {
    fn holds(&self, session: Uuid) -> usize {
        self.held.values().filter(|held| held.session == session).count()
    }

    /// What was not acknowledged in time is nobody's.
    fn lapse(&mut self, now: Instant, keep: Duration) {
        let lapsed: Vec<Uuid> =
            self.held.iter().filter(|(_, held)| held.until <= now).map(|(id, _)| *id).collect();
        for id in lapsed {
            if let Some(held) = self.held.remove(&id) {
                self.lapsed.insert(id, Lapsed { session: held.session, since: now, offered: 0 });
            }
        }
        self.lapsed.retain(|_, lapsed| now.duration_since(lapsed.since) < keep);
    }

    fn room(&self) -> usize {
        self.all.iter().map(|member| MAX_HELD.saturating_sub(self.holds(member.id))).sum()
    }

    /// Whoever holds least, but not who had it before, if there is another.
    fn choose(&self, before: Option<Uuid>) -> Option<&Member> {
        let least = |member: &&Member| self.holds(member.id);
        let others = self.all.iter().filter(|member| Some(member.id) != before);
        others.min_by_key(least).or_else(|| self.all.iter().min_by_key(least))
    }
}

impl Active {
    fn state(&self) -> MutexGuard<'_, Members> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a session.
fn key(session: &Session) -> (Uuid, i64) {
    (session.id(), session.epoch())
}

fn consumer(group: i64) -> String {
    format!("queue-{group}")
}

impl Queues {
    pub(super) fn new(cbor: Weak<Cbor>, ack_wait: Duration) -> Self {
        Self { cbor, ack_wait, groups: Mutex::default(), memberships: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Active>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memberships(&self) -> MutexGuard<'_, HashMap<(Uuid, i64), Vec<Group>>> {
        self.memberships.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session is a member.
    pub(super) async fn join(&self, session: &Session, who: Who, group: Group) {
        let (id, epoch) = key(session);
        {
            let mut memberships = self.memberships();
            let groups = memberships.entry((id, epoch)).or_default();
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let (active, is_new) = {
            let mut groups = self.lock();
            let is_new = !groups.contains_key(&group.id);
            let active = groups.entry(group.id).or_insert_with(|| {
                Arc::new(Active { group, state: Mutex::default(), changed: Notify::new() })
            });
            let mut state = active.state();
            // An older connection of the session may be slower.
            let is_newest = state.all.iter().all(|member| member.id != id || member.epoch <= epoch);
            if is_newest {
                state.all.retain(|member| member.id != id);
                state.all.push(Member { id, epoch, session: session.clone(), who });
            }
            drop(state);
            (Arc::clone(active), is_new)
        };
        active.changed.notify_one();
        let Some(cbor) = self.cbor.upgrade().filter(|_| is_new) else { return };
        // Who subscribes and publishes at once gets it: the group is there before.
        let made = timeout(ANSWER, make(&cbor, group, self.ack_wait)).await;
        let made = made.ok().and_then(Result::ok);
        tokio::spawn(hand_out(Arc::downgrade(&cbor), active, made, self.ack_wait));
    }

    /// A session is no member of any group of a subscription; what it holds goes to others at once.
    pub(super) fn leave(&self, session: &Session, subscription: SubscriptionId) {
        let connection = key(session);
        let groups: Vec<Group> = {
            let mut memberships = self.memberships();
            let all = memberships.remove(&connection).unwrap_or_default();
            let (left, kept): (_, Vec<_>) = all.into_iter().partition(|of| of.subscription == subscription);
            if !kept.is_empty() {
                memberships.insert(connection, kept);
            }
            left
        };
        for Group { id, .. } in groups {
            let Some(group) = self.lock().get(&id).cloned() else { continue };
            let given_back: Vec<Held> = {
                let mut state = group.state();
                state.all.retain(|member| member.id != connection.0);
                let ids: Vec<Uuid> = state
                    .held
                    .iter()
                    .filter(|(_, held)| held.session == connection.0)
                    .map(|(id, _)| *id)
                    .collect();
                ids.iter().filter_map(|id| state.held.remove(id)).collect()
            };
            tokio::spawn(async move {
                for held in given_back {
                    let _ = held.message.ack_with(AckKind::Nak(None)).await;
                }
            });
            group.changed.notify_one();
        }
    }

    /// Its connection has ended: what it holds it may still acknowledge, over another one.
    pub(super) fn leave_all(&self, session: &Session) {
        let groups = self.memberships().remove(&key(session)).unwrap_or_default();
        for Group { id, .. } in groups {
            let Some(group) = self.lock().get(&id).cloned() else { continue };
            group.state().all.retain(|member| !member.session.is(session));
            group.changed.notify_one();
        }
    }

    /// Nobody is in the group any more, at any node.
    pub(super) async fn remove(&self, group: i64) {
        let Some(cbor) = self.cbor.upgrade() else { return };
        let remove = async {
            let stream = cbor.gateway.bus.jetstream.get_stream_no_info(subjects::PUBSUB_STREAM).await?;
            stream.delete_consumer(&consumer(group)).await?;
            anyhow::Ok(())
        };
        if let Err(error) = timeout(ANSWER, remove).await.context("no answer").flatten() {
            tracing::warn!(group, error = format!("{error:#}"), "a group's consumer is left behind");
        }
    }

    /// The session is done with a publication that it holds: it is delivered to nobody any more.
    pub(super) async fn ack(&self, cbor: &Cbor, session: &Session, publication: Uuid) -> Result<(), Why> {
        let unknown = || (Code::UnknownPublication, "not a publication that you hold".to_owned());
        let now = Instant::now();
        let connection = key(session);
        let groups = self.memberships().get(&connection).cloned().unwrap_or_default();
        let mut elsewhere = Vec::new();
        for key in groups {
            let Some(group) = self.lock().get(&key.id).cloned() else { continue };
            let held = {
                let mut state = group.state();
                match state.held.get(&publication) {
                    Some(held) if held.session == connection.0 && held.until > now => {
                        state.held.remove(&publication)
                    }
                    Some(_) => None,
                    None => {
                        if !state.lapsed.contains_key(&publication) {
                            elsewhere.push(key);
                        }
                        None
                    }
                }
            };
            let Some(held) = held else { continue };
            let acked = timeout(ANSWER, held.message.double_ack()).await;
            if matches!(acked, Ok(Ok(()))) {
                group.changed.notify_one();
                return Ok(());
            }
            group.state().held.insert(publication, held);
            return Err((Code::Unavailable, "the bus is away, try again".into()));
        }
        // It may hold it since before it came here.
        if connection.1 > 1 && self.ack_elsewhere(cbor, publication, &elsewhere).await.unwrap_or(false) {
            return Ok(());
        }
        Err(unknown())
    }

    /// Whether a group's consumer waits for it, which does not any more then.
    async fn ack_elsewhere(&self, cbor: &Cbor, id: Uuid, groups: &[Group]) -> anyhow::Result<bool> {
        let sequence = publication::sequence(id);
        for Group { id: group, subscription, .. } in groups {
            let jetstream = &cbor.gateway.bus.jetstream;
            let ask = async {
                let stream = jetstream.get_stream_no_info(subjects::PUBSUB_STREAM).await?;
                let message = stream.get_raw_message(sequence).await?;
                let issue = Issue::parse(sequence, &message.subject, message_id(Some(&message.headers)));
                if issue != Some(Issue { subscription: *subscription, publication: id }) {
                    return anyhow::Ok(false);
                }
                let name = consumer(*group);
                let mut consumer: PullConsumer =
                    stream.get_consumer(&name).await.map_err(anyhow::Error::msg)?;
                let info = consumer.info().await?;
                if info.ack_floor.stream_sequence >= sequence || info.delivered.stream_sequence < sequence {
                    return Ok(false);
                }
                // The bus looks at the place in the stream; the other numbers are for people.
                let subject = format!("$JS.ACK.{}.{name}.1.{sequence}.0.0.0", subjects::PUBSUB_STREAM);
                cbor.gateway.bus.client.request(subject, "+ACK".into()).await?;
                Ok(true)
            };
            if timeout(ANSWER, ask).await.context("no answer")?? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn make(cbor: &Cbor, group: Group, ack_wait: Duration) -> anyhow::Result<PullConsumer> {
    let (name, since) = (consumer(group.id), group.since);
    let config = pull::Config {
        durable_name: Some(name.clone()),
        filter_subject: subjects::publications(group.subscription),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: since + 1 },
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_ack_pending: MAX_PENDING,
        headers_only: true,
        ..Default::default()
    };
    let stream = cbor.gateway.bus.jetstream.get_stream_no_info(subjects::PUBSUB_STREAM).await?;
    Ok(stream.get_or_create_consumer(&name, config).await?)
}

/// As long as the group has members here.
async fn hand_out(cbor: Weak<Cbor>, group: Arc<Active>, mut made: Option<PullConsumer>, ack_wait: Duration) {
    let mut outage = Outage::new("handing out to a group");
    loop {
        let Some(cbor) = cbor.upgrade() else { return };
        let room = {
            let mut groups = cbor.queues.lock();
            let mut state = group.state();
            state.lapse(Instant::now(), ack_wait * 4);
            if state.all.is_empty() {
                // What somebody holds who may come back here is the bus's to deliver again.
                if state.held.is_empty() {
                    groups.remove(&group.group.id);
                    return;
                }
                0
            } else {
                state.room()
            }
        };
        if room == 0 {
            // Until somebody has room, or what is held lapses.
            let _ = timeout(Duration::from_secs(1), group.changed.notified()).await;
            continue;
        }
        let pulled = async {
            let consumer = match made.take() {
                Some(consumer) => consumer,
                None => timeout(ANSWER, make(&cbor, group.group, ack_wait))
                    .await
                    .context("no consumer in time")??,
            };
            pull(&cbor, &group, &consumer, room, ack_wait).await?;
            anyhow::Ok(consumer)
        };
        match pulled.await {
            Ok(consumer) => {
                outage.over();
                made = Some(consumer);
            }
            Err(error) => sleep(outage.failed(error)).await,
        }
    }
}

async fn pull(
    cbor: &Cbor,
    group: &Active,
    consumer: &PullConsumer,
    room: usize,
    ack_wait: Duration,
) -> anyhow::Result<()> {
    let ask = consumer.batch().max_messages(room).expires(PULL).messages();
    let mut messages = timeout(ANSWER, ask).await.context("the bus takes no request")??;
    loop {
        // The bus says when nothing came.
        let next = timeout(PULL + ANSWER, messages.next()).await.context("the bus went silent")?;
        let Some(message) = next else { return Ok(()) };
        let message = match message {
            Ok(message) => message,
            // The last member has left; there may be a new one.
            Err(error) if error.to_string().contains("Consumer Deleted") => return Ok(()),
            Err(error) => anyhow::bail!("the bus breaks off: {error}"),
        };
        if let Err((message, wait)) = give(cbor, group, message, ack_wait) {
            let _ = message.ack_with(AckKind::Nak(wait)).await;
        }
    }
}

/// To a member; back if there is none, or none but who had it before: another node may have one. The bus serves those who
/// ask in turns.
fn give(
    cbor: &Cbor,
    group: &Active,
    message: jetstream::Message,
    ack_wait: Duration,
) -> Result<(), (Box<jetstream::Message>, Option<Duration>)> {
    let sequence = message.info().map(|info| info.stream_sequence);
    let issue = sequence
        .ok()
        .and_then(|sequence| Issue::parse(sequence, &message.subject, message_id(message.headers.as_ref())));
    let Some(Issue { subscription, publication }) = issue else {
        tracing::error!(subject = %message.subject, "a publication has no good id");
        tokio::spawn(async move { message.ack_with(AckKind::Term).await });
        return Ok(());
    };
    let now = Instant::now();
    let mut state = group.state();
    state.lapse(now, ack_wait * 4);
    let before = state.held.get(&publication).map(|held| held.session);
    let before = before.or_else(|| state.lapsed.get(&publication).map(|lapsed| lapsed.session));
    let Some(member) = state.choose(before) else { return Err((Box::new(message), None)) };
    if Some(member.id) == before {
        let session = member.id;
        state.held.remove(&publication);
        let lapsed = state.lapsed.entry(publication).or_insert(Lapsed { session, since: now, offered: 0 });
        if lapsed.offered < OFFERS {
            lapsed.offered += 1;
            return Err((Box::new(message), Some(OFFER)));
        }
    }
    let Some(member) = state.choose(before) else { return Err((Box::new(message), None)) };
    let (session, who, ids) = (member.id, member.who, member.session.forms().0);
    state.held.insert(publication, Held { session, until: now + ack_wait, message });
    state.lapsed.remove(&publication);
    drop(state);
    push(cbor, who, &cbor::issue(subscription, publication, ids));
    Ok(())
}

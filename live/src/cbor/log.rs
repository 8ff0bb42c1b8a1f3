//! The log of a subscription: what was published to it, in the order of the stream.

use super::{
    Cbor, Session,
    speak::Speech,
    work::{framed, refuse},
};
use crate::{
    dialects::cbor::{self, Code, Entry},
    engine::{
        Source,
        frame::Issue,
        replay::{Read, Replay, bounds, message_id},
    },
    metrics,
    reactor::{Answer, Who},
};
use async_nats::jetstream::stream::RawMessageErrorKind;
use bytes::BytesMut;
use cratemill_protocol::{SubscriptionId, publication, subjects};
use cratemill_store::{patience::in_time, pubsub::members};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tokio::{sync::SemaphorePermit, time::timeout};
use uuid::Uuid;

/// One question to the bus.
const ANSWER: Duration = Duration::from_secs(10);
/// Questions for one client at once.
const AT_ONCE: usize = 16;
/// Of the entries of one answer; a client asks for fewer of them then.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Of all answers that a node makes at a time; further ones wait.
pub(super) const ANSWERS_BYTES: usize = 256 << 20;
/// Ids that are written together.
const IDS: usize = 2_000;
const ID_BYTES: usize = 16;
/// How long an answer waits for others.
const TURN: Duration = Duration::from_secs(20);
/// Missing entries that are named.
const MAX_NAMED: usize = 20;
/// What was missed goes in pieces of so many Issues.
const PIECE: usize = 1_000;

type Why = (Code, String);

fn away() -> Why {
    (Code::Unavailable, "the bus is away, try again".into())
}

/// Everything of it that the stream has, as it is now: however much that is.
pub(super) async fn index(cbor: &Cbor, who: Who, session: &Session, log: SubscriptionId) -> Result<(), Why> {
    let mut room = room(cbor, ID_BYTES).await?;
    let (mut publications, filter) = (Vec::new(), subjects::publications(log));
    let jetstream = &cbor.gateway.bus.jetstream;
    let now = timeout(ANSWER, bounds(jetstream, Source::Pubsub)).await;
    let bounds = now.map_err(|_| away())?.map_err(|_| away())?;
    let from = bounds.first.saturating_sub(1);
    let mut replay = Replay::new(jetstream, Source::Pubsub, filter, from, bounds.last);
    while let Some(read) = timeout(ANSWER, replay.next()).await.map_err(|_| away())? {
        // What has gone meanwhile is not in the log any more.
        let Read::Message(stored) = read else { continue };
        let id = str::from_utf8(&stored.payload).unwrap_or_default();
        if let Some(issue) = Issue::parse(stored.sequence, &stored.subject, id) {
            publications.push(issue.publication);
            if publications.len().is_multiple_of(IDS) {
                room.merge(self::room(cbor, IDS * ID_BYTES).await?);
            }
        }
    }
    if publications.is_empty() {
        let exists = async { members::exists(&mut *cbor.pool.acquire().await?, log).await };
        let exists = in_time(exists).await;
        if !exists.map_err(|_| (Code::Unavailable, "the database is away, try again".into()))? {
            return Err((Code::UnknownLog, "there is no such log".into()));
        }
    }
    let (ids, _) = session.forms();
    let mut speech = Speech::begin(cbor, who);
    let said = async {
        speech.say(&cbor::index(log, publications.len(), ids)).await?;
        for some in publications.chunks(IDS) {
            speech.say(&cbor::ids(some, ids)).await?;
        }
        speech.end().await
    };
    // Nobody is there any more to be told otherwise.
    let _ = said.await;
    Ok(())
}

/// For so many bytes of an answer.
async fn room(cbor: &Cbor, bytes: usize) -> Result<SemaphorePermit<'_>, Why> {
    let room = cbor.answers.acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX));
    let room = timeout(TURN, room).await.ok().and_then(Result::ok);
    room.ok_or_else(|| (Code::Unavailable, "this node has too much to answer, try again".into()))
}

/// Those that are there, in the order in which they were asked for, and one error that names the others.
pub(super) async fn entries(
    cbor: &Cbor,
    who: Who,
    session: &Session,
    log: SubscriptionId,
    ids: &[Uuid],
) -> Result<(), Why> {
    let found = stream::iter(ids.iter().copied().map(|id| entry(cbor, log, id))).buffered(AT_ONCE);
    let (mut entries, mut missing, mut bytes, mut room) = (Vec::new(), Vec::new(), 0, room(cbor, 1).await?);
    futures_util::pin_mut!(found);
    while let Some((id, entry)) = found.try_next().await? {
        let Some(entry) = entry else {
            missing.push(id);
            continue;
        };
        bytes += entry.data.len();
        if bytes > MAX_ANSWER_BYTES {
            let message = format!("more than {MAX_ANSWER_BYTES} bytes: ask for fewer entries at once");
            return Err((Code::TooLarge, message));
        }
        room.merge(self::room(cbor, entry.data.len()).await?);
        entries.push(entry);
    }
    let (ids, data) = session.forms();
    let mut speech = Speech::begin(cbor, who);
    let said = async {
        speech.say(&cbor::entries(entries.len())).await?;
        for entry in &entries {
            speech.say(&cbor::entry(entry, ids, data)).await?;
        }
        speech.end().await
    };
    if said.await.is_err() {
        return Ok(());
    }
    drop(room);
    if !missing.is_empty() {
        missing.dedup();
        let named: Vec<String> = missing.iter().take(MAX_NAMED).map(Uuid::to_string).collect();
        let more = missing.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("not in this log: {}{more}", named.join(", "));
        let about = if missing.len() == 1 { missing[0] } else { log.0 };
        refuse(cbor, who, session, Code::UnknownEntry, &message, Some(about));
    }
    Ok(())
}

/// The message at the place that the id names, if it is the one.
async fn entry(cbor: &Cbor, log: SubscriptionId, id: Uuid) -> Result<(Uuid, Option<Entry>), Why> {
    let sequence = publication::sequence(id);
    if sequence == 0 {
        return Ok((id, None));
    }
    let get = async {
        let stream = cbor.gateway.bus.jetstream.get_stream_no_info(subjects::PUBSUB_STREAM).await;
        let stream = stream.map_err(|_| away())?;
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => {
                tracing::warn!(%error, "an entry cannot be read");
                Err(away())
            }
        }
    };
    let Some(message) = timeout(ANSWER, get).await.map_err(|_| away())?? else { return Ok((id, None)) };
    let issue = Issue::parse(sequence, &message.subject, message_id(Some(&message.headers)));
    let is_it = issue.is_some_and(|issue| issue.publication == id && issue.subscription == log);
    let entry = Entry { publication: id, subscription: log, data: message.payload };
    Ok((id, is_it.then_some(entry)))
}

/// Tells a client of what came after a message of the stream, and no ring holds. Returns up to where; nothing if it cannot
/// be read, or the client has gone.
pub(super) async fn issues(
    cbor: &Arc<Cbor>,
    who: Who,
    session: &Session,
    subscription: SubscriptionId,
    seen: u64,
) -> Option<u64> {
    let now = cbor.gateway.hub.mark()?.pubsub;
    metrics::replay(Source::Pubsub.name());
    let filter = subjects::publications(subscription);
    let mut replay = Replay::new(&cbor.gateway.bus.jetstream, Source::Pubsub, filter, seen, now);
    let (mut out, mut count) = (BytesMut::new(), 0);
    let flush = |out: &mut BytesMut| {
        if !out.is_empty() {
            cbor.gateway.reactors.answer(who, Answer::Push(out.split().freeze()));
        }
    };
    while let Some(read) = timeout(ANSWER, replay.next()).await.ok()? {
        // What is gone from the log is gone.
        let Read::Message(stored) = read else { continue };
        let id = str::from_utf8(&stored.payload).unwrap_or_default();
        if let Some(issue) = Issue::parse(stored.sequence, &stored.subject, id) {
            let (ids, _) = session.forms();
            out.extend_from_slice(&framed(&cbor::issue(subscription, issue.publication, ids)));
            count += 1;
        }
        if count % PIECE == 0 {
            flush(&mut out);
        }
    }
    flush(&mut out);
    metrics::frames(count as u64);
    Some(now.max(seen))
}

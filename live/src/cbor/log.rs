//! The log of a subscription: what was published to it, in the order of the stream.

use super::{
    Cbor, Session,
    work::{framed, push, refuse},
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
use tokio::time::timeout;
use uuid::Uuid;

/// One question to the bus.
const ANSWER: Duration = Duration::from_secs(10);
/// Questions for one client at once.
const AT_ONCE: usize = 16;
/// Of an answer, as it is written: less than what one client may be owed. A client asks for fewer entries then.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Of an index, for the same reason.
const MAX_INDEX: usize = 200_000;
/// Missing entries that are named.
const MAX_NAMED: usize = 20;
/// What was missed goes in pieces of so many Issues.
const PIECE: usize = 1_000;

type Why = (Code, String);

fn away() -> Why {
    (Code::Unavailable, "the bus is away, try again".into())
}

/// Everything of it that the stream has, as it is now.
pub(super) async fn index(cbor: &Cbor, session: &Session, log: SubscriptionId) -> Result<Vec<u8>, Why> {
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
        }
        if publications.len() > MAX_INDEX {
            return Err((Code::TooLarge, format!("the log has more than {MAX_INDEX} entries")));
        }
    }
    if publications.is_empty() {
        let exists = async { members::exists(&mut *cbor.pool.acquire().await?, log).await };
        let exists = in_time(exists).await;
        if !exists.map_err(|_| (Code::Unavailable, "the database is away, try again".into()))? {
            return Err((Code::UnknownLog, "there is no such log".into()));
        }
    }
    Ok(cbor::index(log, &publications, session.forms().0))
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
    let (mut entries, mut missing, mut bytes) = (Vec::new(), Vec::new(), 0);
    futures_util::pin_mut!(found);
    while let Some((id, entry)) = found.try_next().await? {
        let Some(entry) = entry else {
            missing.push(id);
            continue;
        };
        // A number in an array may be two bytes long.
        bytes += entry.data.len() * 2 + 128;
        if bytes > MAX_ANSWER_BYTES {
            let message = format!("more than {MAX_ANSWER_BYTES} bytes: ask for fewer entries at once");
            return Err((Code::TooLarge, message));
        }
        entries.push(entry);
    }
    let (ids, data) = session.forms();
    push(cbor, who, &cbor::entries(&entries, ids, data));
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

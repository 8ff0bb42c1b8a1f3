//! `GET /events`: all events, from now on or from where a client left off.
//!
//! ```text
//! Last-Event-ID that the ring has -> parked at once
//! Last-Event-ID that the bus has  -> what came since -> parked
//! one that is older               -> of what came since the latest of each name -> parked
//! none, or one that is made up    -> the latest of each name -> parked
//! ```
//! What is read for a client is written by a task that has its socket, and gives that to a reactor when it is done.

use super::{EventApi, error::Error};
use crate::{
    dialects::{Dialect, event_api},
    engine::{
        Source,
        channel::Mark,
        frame::Frame,
        replay::{Read, Replay},
        seats::Seat,
    },
    gateway::Refusal,
    metrics,
    place::{self, Found, Place},
    reactor::{Kind, Parking},
    sse::{last_event_id, with_headers},
};
use anyhow::{Context as _, bail};
use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use cratemill_protocol::{subjects, topic::Topic};
use cratemill_service::{
    backoff::Backoff,
    take_over::{TakeOver, Taken},
};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

/// How long a client may take for a piece of what is read for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits until something is read for it. A browser that is refused does not come back by itself.
const TURN: Duration = Duration::from_secs(15);
/// What a socket takes at once, and nobody has to wait with.
const SMALL_BYTES: usize = 16 * 1024;
/// What was missed goes in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;
/// How often the database, or the ring, may fail a client that is being served, before it is to come back later.
const TRIES: usize = 5;

static TOPICS: LazyLock<Arc<[Topic]>> = LazyLock::new(|| [Topic::Timeline].into());

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Away(match refusal.counted() {
            Refusal::Draining => "this node is going away",
            Refusal::Full => "this node has as many viewers as it takes",
            Refusal::Replays => "too many viewers read the past here",
            Refusal::Starting | Refusal::Database => "the bus is away",
        })
    }
}

pub(super) async fn follow(State(api): State<Arc<EventApi>>, headers: HeaderMap) -> Result<Response, Error> {
    let seat = api.gateway.admit()?;
    let now = api.gateway.hub.mark().ok_or(Refusal::Starting)?;
    let seen = last_event_id(&headers).and_then(event_api::last_event_id);
    let mut missed = Missed::All { after: i64::MIN, end: 0 };
    if let Some(seen) = seen {
        match find(&api, seen).await {
            Found::Place(place) => {
                return Ok(take_over(move |taken| park(&api, taken, &event_api::hello(), place, seat)));
            }
            Found::NotYet => return Err(Refusal::Starting.into()),
            Found::None => missed = Missed::Since(seen),
            Found::Unknown => {}
        }
    }
    if let Missed::All { after, end } = &mut missed {
        // A database that is away is told while there is somebody to tell.
        *end = api.sync.end(now.timeline).await?;
        let page = api.sync.page(*after, *end).await?;
        if page.last == *end
            && page.bytes.len() <= SMALL_BYTES
            && let Found::Place(place) = find(&api, u64::try_from(*end).unwrap_or(0)).await
        {
            let first = if page.bytes.is_empty() { event_api::connected() } else { page.bytes };
            return Ok(take_over(move |taken| park(&api, taken, &first, place, seat)));
        }
    }
    let follower = timeout(TURN, Arc::clone(&api.followers).acquire_owned()).await;
    let follower = follower.ok().and_then(Result::ok).ok_or(Refusal::Replays)?;
    Ok(take_over(move |taken| {
        tokio::spawn(async move {
            let shutdown = api.gateway.shutdown.clone();
            tokio::select! {
                () = catch_up(api, taken, missed, (seat, follower)) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }))
}

fn take_over(taker: impl FnOnce(Taken) + Send + 'static) -> Response {
    let mut response = with_headers(().into_response());
    response.extensions_mut().insert(TakeOver::new(taker));
    response
}

async fn find(api: &EventApi, seen: u64) -> Found {
    let mark = Mark { timeline: seen, ..Mark::default() };
    place::find(&api.gateway, &TOPICS, Some(mark), api.gateway.reactors.choose()).await
}

/// A client that the ring has everything for, but what it gets first.
fn park(api: &EventApi, Taken { stream, head, early: _ }: Taken, first: &Bytes, place: Place, seat: Seat) {
    let mut owed = BytesMut::from(&head[..]);
    owed.put_slice(first);
    hand_over(api, stream, place, seat, owed.freeze());
}

fn hand_over(api: &EventApi, stream: std::net::TcpStream, place: Place, seat: Seat, owed: Bytes) {
    let Place { member, cursor, mark: _ } = place;
    let kind = Kind::Events { member, cursor };
    api.gateway.reactors.park(Parking { stream, seat, dialect: Dialect::EventApi, owed, kind });
}

/// What a client has not got yet.
#[derive(Debug, Clone, Copy)]
enum Missed {
    /// Of the latest of each name those after one place, up to and with another.
    All { after: i64, end: i64 },
    /// Everything after this place.
    Since(u64),
}

/// A client that something has to be read for. It says nothing that matters.
struct Client {
    stream: TcpStream,
    /// What is written with the next piece.
    first: Bytes,
}

impl Client {
    async fn write(&mut self, bytes: &Bytes) -> anyhow::Result<()> {
        let first = std::mem::take(&mut self.first);
        let write = async {
            self.stream.write_all(&first).await?;
            self.stream.write_all(bytes).await
        };
        let Ok(written) = timeout(PATIENCE, write).await else {
            metrics::dropped("slow");
            bail!("it takes nothing")
        };
        Ok(written?)
    }
}

async fn catch_up(
    api: Arc<EventApi>,
    Taken { stream, head, early: _ }: Taken,
    missed: Missed,
    (seat, _follower): (Seat, OwnedSemaphorePermit),
) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a socket cannot be waited for"),
    };
    let mut client = Client { stream, first: head };
    match bring(&api, &mut client, missed).await {
        Ok(place) => match client.stream.into_std() {
            Ok(stream) => hand_over(&api, stream, place, seat, client.first),
            Err(error) => tracing::debug!(%error, "a socket cannot be given away"),
        },
        // It comes back, with the id of what it got last.
        Err(error) => tracing::debug!(error = format!("{error:#}"), "a viewer is let go"),
    }
}

/// Writes what was missed, until the ring has the rest.
async fn bring(api: &EventApi, client: &mut Client, mut missed: Missed) -> anyhow::Result<Place> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    for _ in 0..TRIES {
        let seen = match missed {
            Missed::All { after, end } => {
                let Some(seen) = latest(api, client, &mut missed, after, end).await? else {
                    sleep(backoff.next_wait()).await;
                    continue;
                };
                seen
            }
            Missed::Since(seen) => seen,
        };
        missed = Missed::Since(seen);
        match find(api, seen).await {
            Found::Place(place) => return Ok(place),
            Found::NotYet => sleep(backoff.next_wait()).await,
            Found::Unknown => missed = begin(api, i64::MIN).await?,
            Found::None => missed = replay(api, client, seen).await?,
        }
    }
    bail!("it does not get to the end of what it missed")
}

/// The latest of each name, for who has seen everything up to one place.
async fn begin(api: &EventApi, after: i64) -> anyhow::Result<Missed> {
    let now = api.gateway.hub.mark().context("the streams are not known")?;
    Ok(Missed::All { after, end: api.sync.end(now.timeline).await? })
}

/// The latest of each name. Returns where the stream goes on; nothing if the database has no answer, and then `missed` says
/// what is left.
async fn latest(
    api: &EventApi,
    client: &mut Client,
    missed: &mut Missed,
    mut after: i64,
    end: i64,
) -> anyhow::Result<Option<u64>> {
    metrics::replay("latest");
    let is_first = after == i64::MIN;
    let mut count = 0;
    while after < end {
        let page = match api.sync.page(after, end).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, "a sync has to wait");
                *missed = Missed::All { after, end };
                return Ok(None);
            }
        };
        if !page.bytes.is_empty() {
            client.write(&page.bytes).await?;
            count += 1;
        }
        after = page.last;
    }
    if is_first && count == 0 {
        client.write(&event_api::connected()).await?;
    }
    Ok(Some(u64::try_from(end).unwrap_or(0)))
}

/// What the bus has of what a ring has not. Returns what is missed then.
async fn replay(api: &EventApi, client: &mut Client, seen: u64) -> anyhow::Result<Missed> {
    let now = api.gateway.hub.mark().context("the streams are not known")?.timeline;
    metrics::replay(Source::Timeline.name());
    let filter = subjects::TIMELINE_EVENT.to_owned();
    let mut replay = Replay::new(&api.gateway.bus.jetstream, Source::Timeline, filter, seen, now);
    let (mut out, mut count, mut written) = (BytesMut::new(), 0, seen);
    while let Some(read) = replay.next().await {
        match read {
            // What is gone cannot be brought back, but what is the latest of each name.
            Read::Expired { .. } => return begin(api, i64::try_from(written).unwrap_or(i64::MAX)).await,
            Read::Message(stored) => {
                if let Some(frame) =
                    Frame::decode(Source::Timeline, stored.sequence, &stored.subject, &stored.payload)
                {
                    Dialect::EventApi.message(&frame, &TOPICS, &Mark::default().position(&[]), &mut out);
                    count += 1;
                }
                if out.len() >= PIECE_BYTES {
                    client.write(&out.split().freeze()).await?;
                    written = stored.sequence;
                }
            }
        }
    }
    metrics::frames(count);
    client.write(&out.freeze()).await?;
    Ok(Missed::Since(now.max(seen)))
}

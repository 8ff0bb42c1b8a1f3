//! The stream TIMELINE: what it has beyond what is noted, and putting events behind its last message.
//!
//! Each message says which one it comes after, and the stream refuses it if that is not so: whoever published meanwhile,
//! a leader that does not know it lost the lead, is noticed, and nothing is stored twice or out of order.

use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use cratemill_protocol::{EventId, JsonText, bus, bus::TimelineEvent, subjects};
use cratemill_service::bus::{Bus, Numbered, Sent};
use cratemill_store::events::schedule::Firing;
use std::time::Duration;
use tokio::time::timeout;

/// A question about the stream, one message of it, or the acknowledgements of a batch.
const ANSWER: Duration = Duration::from_secs(5);

/// The last message that the stream ever had.
pub(crate) async fn last(bus: &Bus) -> anyhow::Result<(Stream, u64)> {
    let asked = timeout(ANSWER, bus.jetstream.get_stream(subjects::TIMELINE_STREAM)).await;
    let stream = asked.context("no answer about the stream")?.context("cannot look at the stream")?;
    let last = stream.cached_info().state.last_sequence;
    Ok((stream, last))
}

/// The events of the stream after one place and up to and with another; what is gone is left out.
pub(crate) async fn read(stream: &Stream, after: u64, until: u64) -> anyhow::Result<Vec<(EventId, u64)>> {
    let first = stream.cached_info().state.first_sequence.max(after + 1);
    let mut events = Vec::new();
    for sequence in first..=until {
        match timeout(ANSWER, stream.get_raw_message(sequence)).await.context("no answer about a message")? {
            Ok(message) => match bus::decode::<TimelineEvent>(&message.payload) {
                Ok(event) => events.push((event.id, sequence)),
                Err(error) => tracing::error!(sequence, %error, "a message of the timeline is no event"),
            },
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error).context("cannot read the stream"),
        }
    }
    Ok(events)
}

/// Sends them to stand behind message `last`, in order. After an error any number of the first may be there.
pub(crate) async fn send(bus: &Bus, firing: &[Firing], last: u64) -> anyhow::Result<Sent> {
    let mut messages = Vec::with_capacity(firing.len());
    for Firing { id, event, data, .. } in firing {
        let data = JsonText::parse(data.as_bytes()).with_context(|| format!("event {id} has bad data"))?;
        let event = TimelineEvent { id: *id, name: event.clone(), data };
        messages.push(Numbered { id: id.to_string(), payload: bus::encode(&event).into() });
    }
    let sent = bus.send_behind(subjects::TIMELINE_EVENT, last, messages);
    Ok(timeout(ANSWER, sent).await.context("the bus takes no events")??)
}

/// Once they are there.
pub(crate) async fn stored(sent: Sent) -> anyhow::Result<()> {
    Ok(timeout(ANSWER, sent.stored()).await.context("the bus takes events slowly")??)
}

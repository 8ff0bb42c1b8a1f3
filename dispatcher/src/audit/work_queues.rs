//! Whether the work queues of the bus are worked off.

use super::{Auditor, report::Check};
use anyhow::Context as _;
use async_nats::jetstream::{context::ConsumerInfoErrorKind, stream::Stream};
use cratemill_protocol::subjects;
use time::{Duration, OffsetDateTime};

/// Each stream with the consumers that share it.
const QUEUES: [(&str, &[&str]); 2] = [
    (subjects::BUILD_STREAM, &[subjects::REQUESTS_CONSUMER, subjects::OUTCOMES_CONSUMER]),
    (subjects::DOWNLOADS_STREAM, &[subjects::DOWNLOADS_CONSUMER]),
];
/// Messages wait for as long as the database or the object store is away; longer than this nobody means to.
const OLDEST: Duration = Duration::minutes(10);

pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<Check> {
    let mut check = Check::new("work-queues");
    for (name, consumers) in QUEUES {
        let stream = auditor.bus.jetstream.get_stream(name).await;
        let stream = stream.with_context(|| format!("cannot look at the stream {name}"))?;
        let state = &stream.cached_info().state;
        check.looked_at += state.messages;
        let age = OffsetDateTime::now_utc() - state.first_timestamp;
        if state.messages > 0 && (auditor.at_rest || age > OLDEST) {
            let (count, age_s) = (state.messages, age.whole_seconds());
            check.find(format!("{name} holds {count} messages, the oldest since {age_s} s"));
        }
        for consumer in consumers.iter().filter(|_| auditor.at_rest) {
            let pending = ack_pending(&stream, consumer).await?;
            if pending > 0 {
                check.find(format!("{name}: {pending} messages are with {consumer} and not acknowledged"));
            }
        }
    }
    Ok(check)
}

/// Of a consumer that nobody has made yet: none.
async fn ack_pending(stream: &Stream, consumer: &str) -> anyhow::Result<usize> {
    match stream.consumer_info(consumer).await {
        Ok(info) => Ok(info.num_ack_pending),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot look at the consumer {consumer}")),
    }
}

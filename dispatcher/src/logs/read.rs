//! Reads the events of one attempt from the stream, one get each: no consumer is left behind, whatever happens.
//!
//! They are asked of the stream's leader. A direct get is answered by any server, and one that was away does not know
//! what it lacks: what it does not have would look as if it had been lost.

use super::assemble::{Assembler, Log};
use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use cratemill_protocol::{
    Attempt, JobId,
    bus::{self, LogMessage},
    subjects,
};

/// A builder's log has far fewer events: it sends text in chunks of 32 KiB, or what it has every now and then.
const MAX_EVENTS: usize = 200_000;

/// `most` is the bound of the log's text.
pub(super) async fn read(stream: &Stream, job: JobId, attempt: Attempt, most: u64) -> anyhow::Result<Log> {
    let subject = subjects::log(job, attempt);
    let mut assembler = Assembler::new(most);
    let mut next = 1;
    for _ in 0..MAX_EVENTS {
        let stored = match stream.get_first_raw_message_by_subject(&subject, next).await {
            Ok(stored) => stored,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
            Err(error) => return Err(error).context("cannot read the stream"),
        };
        next = stored.sequence + 1;
        match bus::decode::<LogMessage>(&stored.payload) {
            Ok(message) => {
                if !assembler.push(&message)? {
                    tracing::warn!(%job, %attempt, most, "a log is longer than allowed: the rest is dropped");
                    break;
                }
            }
            Err(error) => {
                tracing::error!(%job, %attempt, %error, "an event of a log cannot be read: left out");
            }
        }
    }
    Ok(assembler.finish()?)
}

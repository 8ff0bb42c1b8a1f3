//! The log of an attempt on the bus, from its first message to the one that was the last when the reading began.
//!
//! Each message is got by itself, from the stream's leader: nothing is left on the bus when a reader goes away, and an
//! election costs retries. A direct get is answered by any server, and one that was away does not know what it lacks.
//! Every get is answered by memory or page cache; an archived log, which most readers want, does not come this way.

use crate::problem::{Problem, Result};
use async_nats::jetstream::{
    message::StreamMessage,
    stream::{RawMessageError, RawMessageErrorKind, Stream},
};
use bytes::Bytes;
use cratemill_protocol::{
    Attempt, JobId,
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_service::{backoff::Backoff, bus::Bus};
use std::time::Duration;

/// Opening gives up by then: its reader has no answer yet.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// One get; a server that is away does not answer.
const GET_TIMEOUT: Duration = Duration::from_secs(3);
/// Gets of one message before the reader is told that the log broke off: longer than an election takes.
const TRIES: usize = 15;

#[derive(Debug)]
pub(crate) struct Live {
    stream: Stream<()>,
    pub job: JobId,
    pub attempt: Attempt,
    /// The sequence to go on at, and the last one that is wanted.
    next: u64,
    last: u64,
    /// Bytes of log that were read.
    pub offset: u64,
}

#[derive(Debug)]
pub(crate) enum Read {
    Text(Bytes),
    End,
    /// The bus has purged what follows `offset`.
    Gone,
}

impl Live {
    /// None if the bus has nothing of it.
    pub(crate) async fn open(bus: &Bus, job: JobId, attempt: Attempt) -> Result<Option<Self>> {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, Self::look(bus, job, attempt)).await;
        opened.unwrap_or_else(|_| Err("no answer in time".into())).map_err(|why| {
            tracing::warn!(%job, %attempt, why, "the bus does not give a log");
            Problem::unavailable("the bus that has the log is away, try again")
        })
    }

    async fn look(bus: &Bus, job: JobId, attempt: Attempt) -> Result<Option<Self>, String> {
        bus.check()?;
        let stream = bus.jetstream.get_stream_no_info(subjects::LOGS_STREAM).await;
        let stream = stream.map_err(|error| error.to_string())?;
        match stream.get_last_raw_message_by_subject(&subjects::log(job, attempt)).await {
            Ok(message) => {
                Ok(Some(Self { stream, job, attempt, next: 1, last: message.sequence, offset: 0 }))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(crate) async fn read(&mut self) -> Result<Read, RawMessageError> {
        while self.next <= self.last {
            let message = match self.get().await {
                Ok(message) if message.sequence <= self.last => message,
                // The one that was the last is gone.
                Ok(_) => return Ok(Read::Gone),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(Read::Gone),
                Err(error) => return Err(error),
            };
            self.next = message.sequence + 1;
            let Some((offset, text)) = text_of(&message) else { continue };
            let Some(start) = first_unseen(self.offset, offset, text.len()) else { continue };
            if offset > self.offset {
                // Builders' events are stored in order, so this is a fault; what is there is still worth reading.
                tracing::warn!(job = %self.job, from = self.offset, to = offset, "a log on the bus has a gap");
            }
            self.offset = offset + text.len() as u64;
            return Ok(Read::Text(Bytes::from(text).slice(start..)));
        }
        Ok(Read::End)
    }

    async fn get(&self) -> Result<StreamMessage, RawMessageError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut tries = 1;
        loop {
            let got = self
                .stream
                .get_first_raw_message_by_subject(subjects::log(self.job, self.attempt), self.next);
            let error = match tokio::time::timeout(GET_TIMEOUT, got).await {
                Ok(Err(error)) if error.kind() != RawMessageErrorKind::NoMessageFound && tries < TRIES => {
                    error.to_string()
                }
                Ok(result) => return result,
                Err(_) if tries < TRIES => "no answer in time".to_owned(),
                Err(_) => return Err(RawMessageError::new(RawMessageErrorKind::Other)),
            };
            tracing::debug!(job = %self.job, error, tries, "getting a part of a log again");
            tries += 1;
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }
}

/// A message's text and where it belongs; stages, the end, and what is no log message have none.
fn text_of(message: &StreamMessage) -> Option<(u64, String)> {
    match bus::decode::<LogMessage>(&message.payload) {
        Ok(LogMessage { body: LogBody::Text { offset, text }, .. }) => Some((offset, text)),
        Ok(_) => None,
        Err(error) => {
            tracing::error!(subject = %message.subject, %error, "a message on the bus is no log message");
            None
        }
    }
}

/// Where in a chunk begins what a reader, who has `seen` bytes of the log, has not seen; none if it has seen it all.
/// A builder that reconnects sends events again, perhaps cut at other places.
fn first_unseen(seen: u64, offset: u64, length: usize) -> Option<usize> {
    let start = usize::try_from(seen.saturating_sub(offset)).unwrap_or(usize::MAX);
    (start < length).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::first_unseen;
    use proptest::prelude::*;

    #[test]
    fn a_chunk_is_read_from_where_it_is_new() {
        for (seen, offset, length, expected) in [
            (0, 0, 5, Some(0)),
            (5, 5, 5, Some(0)),
            (5, 0, 5, None),
            (5, 3, 5, Some(2)),
            (5, 0, 0, None),
            (5, 9, 2, Some(0)),
            (u64::MAX, 0, 5, None),
        ] {
            assert_eq!(first_unseen(seen, offset, length), expected, "{seen} {offset} {length}");
        }
    }

    proptest! {
        /// Chunks of a log, resent from anywhere and cut anywhere, make the log.
        #[test]
        fn resent_chunks_change_nothing(log in prop::collection::vec(any::<u8>(), 1..60),
                                        resends in prop::collection::vec((0_usize..60, 1_usize..9), 0..20)) {
            let (mut read, mut seen) = (Vec::new(), 0_u64);
            let mut take = |offset: usize, length: usize| {
                let chunk = &log[offset..(offset + length).min(log.len())];
                if offset as u64 <= seen && let Some(start) = first_unseen(seen, offset as u64, chunk.len()) {
                    read.extend_from_slice(&chunk[start..]);
                    seen = (offset + chunk.len()) as u64;
                }
            };
            for (offset, length) in resends {
                take(offset % log.len(), length);
            }
            (0..log.len()).for_each(|offset| take(offset, 1));
            prop_assert_eq!(read, log);
        }
    }
}

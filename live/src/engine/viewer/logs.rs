//! The part of a viewer that follows logs, between the stream and the archive.
//!
//! A log that is followed may move to the archive at any moment. So after reading the stream, and whenever something
//! is missing in it, the viewer looks whether the attempt is archived, and takes the rest from there by its offset.

use super::{End, ResetReason, Viewer, What};
use crate::{
    engine::{
        Source,
        archive::{self, ArchivedLog, Wanted},
        frame::{Frame, LogPart, Message},
        position::LogCursor,
        replay::{self, Read, Replay},
    },
    metrics,
};
use cratemill_protocol::{Attempt, JobId, bus::LogBody, subjects, topic::Topic};
use cratemill_service::backoff::Backoff;
use std::{sync::Arc, time::Duration};

impl Viewer {
    pub(super) async fn catch_up_log(&mut self, job: JobId, until: u64) -> Result<(), End> {
        let from = self.cursor(job).sequence;
        let jetstream = &self.engine.bus.jetstream;
        if from > until && from > replay::bounds_at_last(jetstream, Source::Logs).await.last {
            // The stream began anew, or the viewer made its position up: the log from its start is right in any case.
            self.position.logs.remove(&job);
            self.reset(&[Topic::JobLog(job)], ResetReason::Unknown).await?;
        }
        self.settle(job, Wanted::UntilFirstOnBus).await?;
        let from = self.cursor(job).sequence;
        if from < until {
            metrics::replay(Source::Logs.name());
            let filter = subjects::log_of_job(job);
            let mut replay = Replay::new(&self.engine.bus.jetstream, Source::Logs, filter, from, until);
            while let Some(read) = replay.next().await {
                if let Read::Message(stored) = read
                    && let Some(frame) =
                        Frame::decode(Source::Logs, stored.sequence, &stored.subject, &stored.payload)
                {
                    self.deliver(Arc::new(frame)).await?;
                }
            }
            // What was archived before the stream was read to its end was missing there.
            self.settle(job, Wanted::UntilFirstOnBus).await?;
        }
        Ok(())
    }

    /// Delivers what the archive has and this viewer has not.
    pub(super) async fn settle(&mut self, job: JobId, wanted: Wanted) -> Result<(), End> {
        let cursor = self.cursor(job);
        let mut backoff = backoff();
        let logs = loop {
            match self.engine.archive.find(job, &cursor, wanted).await {
                Ok(logs) => break logs,
                Err(error) => tracing::warn!(%job, %error, "cannot look for archived logs, trying again"),
            }
            self.pause(&mut backoff).await?;
        };
        for log in logs {
            self.archived(job, &log).await?;
        }
        Ok(())
    }

    async fn archived(&mut self, job: JobId, log: &ArchivedLog) -> Result<(), End> {
        metrics::replay("archive");
        let mut backoff = backoff();
        loop {
            match self.read_archived(job, log).await? {
                Ok(()) => break,
                Err(archive::Error::Away(error)) => {
                    tracing::warn!(%job, attempt = %log.attempt, %error, "cannot read an archived log, trying again");
                }
                Err(archive::Error::Lost(why)) => {
                    tracing::error!(%job, attempt = %log.attempt, why, "an archived log is lost");
                    self.reset(&[Topic::JobLog(job)], ResetReason::Lost).await?;
                    break;
                }
            }
            self.pause(&mut backoff).await?;
        }
        self.part(job, log.attempt, LogBody::End { state: log.state }).await
    }

    /// From where the cursor is to the end of the text.
    async fn read_archived(
        &mut self,
        job: JobId,
        log: &ArchivedLog,
    ) -> Result<Result<(), archive::Error>, End> {
        let cursor = self.cursor(job);
        let offset = if cursor.attempt == log.attempt { cursor.offset } else { 0 };
        let mut reader = match self.engine.archive.open(log, offset).await {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            match reader.next().await {
                Ok(Some(piece)) => {
                    let body = LogBody::Text { offset: piece.offset, text: piece.text };
                    self.part(job, log.attempt, body).await?;
                }
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    async fn part(&mut self, job: JobId, attempt: Attempt, body: LogBody) -> Result<(), End> {
        let part = LogPart { job, attempt, body };
        self.position.logs.entry(job).or_default().advance(0, &part);
        self.send(What::Frame(Arc::new(Frame::new(0, Message::Log(part))))).await
    }

    async fn pause(&self, backoff: &mut Backoff) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => Ok(()),
            () = self.items.closed() => Err(End::Gone),
        }
    }

    pub(super) fn cursor(&self, job: JobId) -> LogCursor {
        self.position.logs.get(&job).copied().unwrap_or_default()
    }
}

/// A database or object store that comes back is used within five seconds.
fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

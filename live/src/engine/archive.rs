//! Logs of attempts that ended long enough ago to have left the bus: in the object store, found through Postgres.

use crate::engine::{
    position::LogCursor,
    text::{Piece, Pieces},
};
use cratemill_protocol::{Attempt, JobId, JobState};
use cratemill_store::{PgPool, attempts, jobs, objects};
use flate2::write::GzDecoder;
use std::{collections::VecDeque, io::Write as _};

/// Compressed bytes that are unpacked at once: a thousand times as many can come out.
const SLICE_BYTES: usize = 1024;

#[derive(Debug, Clone)]
pub struct Archive {
    pub pool: PgPool,
    pub objects: objects::Objects,
}

/// The log of one attempt, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedLog {
    pub attempt: Attempt,
    pub object: String,
    /// What became of the job with this attempt: a final state, or `queued` where another one follows.
    pub state: JobState,
}

/// Which archived logs a viewer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those that nothing else comes before: the rest is on the bus.
    UntilFirstOnBus,
    /// Every one up to this attempt: a later message has come already.
    Through(Attempt),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It will be back.
    #[error(transparent)]
    Away(objects::Error),
    /// It will not: the object is gone or is no log.
    #[error("{0}")]
    Lost(String),
}

impl Archive {
    /// Whether the database knows this job.
    pub async fn knows(&self, job: JobId) -> Result<bool, cratemill_store::Error> {
        let mut conn = self.pool.acquire().await?;
        Ok(jobs::find(&mut conn, job).await?.is_some())
    }

    /// Archived attempts that `cursor` has not finished, in order.
    pub async fn find(
        &self,
        job: JobId,
        cursor: &LogCursor,
        wanted: Wanted,
    ) -> Result<Vec<ArchivedLog>, cratemill_store::Error> {
        let mut conn = self.pool.acquire().await?;
        let Some(newest) = attempts::log(&mut conn, job, None).await? else { return Ok(Vec::new()) };
        let last = match wanted {
            Wanted::UntilFirstOnBus => newest.attempt.0,
            Wanted::Through(attempt) => newest.attempt.0.min(attempt.0),
        };
        let mut found = Vec::new();
        for number in cursor.unfinished().0.max(1)..=last {
            let log = attempts::log(&mut conn, job, Some(Attempt(number))).await?;
            match log.and_then(|log| log.log_object) {
                Some(object) => {
                    let state = JobState::Queued;
                    found.push(ArchivedLog { attempt: Attempt(number), object, state });
                }
                None if wanted == Wanted::UntilFirstOnBus => break,
                None => {}
            }
        }
        if let Some(log) = found.last_mut()
            && let Some(job) = jobs::find(&mut conn, job).await?
            && job.attempt == log.attempt
        {
            log.state = job.state;
        }
        Ok(found)
    }

    /// Opens a log at a byte of its text.
    pub async fn open(&self, log: &ArchivedLog, offset: u64) -> Result<Reader, Error> {
        let object = self.objects.get(&log.object, None).await.map_err(|error| match error {
            objects::Error::NotFound(_) => Error::Lost(error.to_string()),
            error => Error::Away(error),
        })?;
        Ok(Reader {
            object,
            compressed: VecDeque::new(),
            decoder: GzDecoder::new(Vec::new()),
            pieces: Pieces::starting_at(offset),
            finished: false,
        })
    }
}

/// Unpacks a log as it arrives, in memory that does not grow with it.
#[derive(Debug)]
pub struct Reader {
    object: objects::Object,
    compressed: VecDeque<u8>,
    decoder: GzDecoder<Vec<u8>>,
    pieces: Pieces,
    finished: bool,
}

impl Reader {
    pub async fn next(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            if let Some(piece) = self.pieces.pop(self.finished).map_err(|error| lost(&error))? {
                return Ok(Some(piece));
            }
            if self.finished {
                return Ok(None);
            }
            if self.compressed.is_empty() {
                match self.object.body.next().await {
                    Some(Ok(bytes)) => self.compressed.extend(bytes),
                    Some(Err(error)) => {
                        return Err(Error::Away(objects::Error::Unavailable(error.to_string())));
                    }
                    None => self.finished = true,
                }
            }
            self.unpack().map_err(|error| lost(&error))?;
        }
    }

    fn unpack(&mut self) -> std::io::Result<()> {
        let count = self.compressed.len().min(SLICE_BYTES);
        let slice: Vec<u8> = self.compressed.drain(..count).collect();
        self.decoder.write_all(&slice)?;
        if self.finished {
            self.decoder.try_finish()?;
        }
        self.pieces.push(&std::mem::take(self.decoder.get_mut()));
        Ok(())
    }
}

fn lost(error: &dyn std::error::Error) -> Error {
    Error::Lost(error.to_string())
}

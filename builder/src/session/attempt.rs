//! One attempt at a job as the session sees it: its unacknowledged events and, once it ended, its outcome.

use super::Window;
use cratemill_protocol::{
    self as protocol, FailureClass, JobId, Outcome,
    builder::{ClientMessage, JobEvent, JobRef, JobResponse, MAX_FRAME_BYTES, Resume},
    codec::Encoding,
    job::Timings,
};
use std::time::{Duration, Instant};

/// A [`JobRef`] that sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(JobId, protocol::Attempt);

impl Key {
    pub(super) fn of(job: JobRef) -> Self {
        Self(job.job, job.attempt)
    }

    pub(super) fn job_ref(&self) -> JobRef {
        JobRef { job: self.0, attempt: self.1 }
    }

    /// Smaller than every key behind this one.
    pub(super) fn after(self) -> Self {
        Self(self.0, protocol::Attempt(self.1.0.saturating_add(1)))
    }
}

/// How an attempt ended, with the signed manifest if it succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub outcome: Outcome,
    pub manifest: Option<String>,
    pub signature: Option<String>,
}

impl Finished {
    pub fn failed(class: FailureClass, message: &str) -> Self {
        let outcome =
            Outcome::Failed { class, message: message.to_owned(), stage: None, timings: Timings::default() };
        Self { outcome, manifest: None, signature: None }
    }

    fn response(self, Key(job, attempt): Key, last_seq: u64) -> JobResponse {
        let Self { outcome, manifest, signature } = self;
        JobResponse { job, attempt, outcome, last_seq, manifest, signature }
    }

    /// An outcome that fits a frame. A larger one would end every connection that it is sent on, and so be sent for ever.
    fn fitting(self, key: Key) -> Self {
        let response = ClientMessage::JobResponse(self.clone().response(key, u64::MAX));
        if Encoding::MsgPack.encode(&response).len() <= MAX_FRAME_BYTES {
            return self;
        }
        let class = match self.outcome {
            Outcome::Failed { class, .. } => class,
            Outcome::Succeeded { .. } | Outcome::Cancelled => FailureClass::Infrastructure,
        };
        Self::failed(class, "what the builder has to say about the end is too long for a message")
    }
}

#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) window: Window,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Running,
    Ended {
        finished: Finished,
        /// When to send it again; none if it did not go out on this connection.
        resend: Option<Instant>,
    },
}

impl Attempt {
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    pub(super) fn end(&mut self, key: Key, finished: Finished) {
        self.state = State::Ended { finished: finished.fitting(key), resend: None };
    }

    pub(super) fn resume(&self, Key(job, attempt): Key) -> Resume {
        Resume { job, attempt, next_seq: self.window.next_unacked() }
    }

    pub(super) fn rewind(&mut self) {
        self.window.rewind();
        if let State::Ended { resend, .. } = &mut self.state {
            *resend = None;
        }
    }

    pub(super) fn next_event(&mut self, Key(job, attempt): Key, max_in_flight: usize) -> Option<JobEvent> {
        let (seq, event) = self.window.take_next(max_in_flight)?;
        Some(JobEvent { job, attempt, seq, event })
    }

    pub(super) fn resend_at(&self) -> Option<Instant> {
        match self.state {
            State::Ended { resend, .. } => resend,
            State::Running => None,
        }
    }

    /// The outcome, when all events before it are durable and it is time to send it (again).
    pub(super) fn due_response(
        &mut self,
        key: Key,
        now: Instant,
        resend_after: Duration,
    ) -> Option<JobResponse> {
        let last_seq = self.window.last_seq();
        let State::Ended { finished, resend } = &mut self.state else { return None };
        if !self.window.is_empty() || resend.is_some_and(|at| now < at) {
            return None;
        }
        *resend = Some(now + resend_after);
        Some(finished.clone().response(key, last_seq))
    }
}

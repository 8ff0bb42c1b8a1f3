//! The job queue: every change of where a job stands, each fenced by the attempt number and announced in the outbox.
//!
//! A job waits in `queue`, is a builder's in `leases`, or has ended and is in `finished_jobs`; its row in `jobs` never
//! changes. Attempts that another one followed are in `attempts`.
//!
//! ```text
//! enqueue      -> queued
//! assign          queued -> assigned       attempt + 1, lease until the builder accepts
//! accept          assigned -> running      lease until the next heartbeat
//! renew           running -> running
//! finish          assigned | running -> succeeded | failed | cancelled
//! retry_later     assigned | running -> queued      run_at later, and a try more if it ran
//! cancel          queued -> cancelled; assigned | running: asks for it
//! ```
//!
//! What is due stands in a line for each target and priority, in the order of `turn` (see `next_turn` in the migrations):
//! crates take turns, and a job's place is dealt once, so that a round of assignment reads no more than it hands out.

mod cancel;
mod changes;
mod ending;
mod enqueue;
mod lease;
mod line;

pub use cancel::{Cancelled, cancel, withdraw};
pub use ending::{
    End, Ended, Ending, Held, end_all, expired, finish, hold, overdue, result_name, retry_later,
};
pub use enqueue::{Enqueued, NewJob, enqueue, enqueue_all};
pub use lease::{Accept, Renewed, accept, accept_all, assign, renew, set_stage};
pub use line::{Candidate, candidates, lengths, next_due, promote};

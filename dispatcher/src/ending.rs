//! How an attempt's end becomes the job's next state: for good, or back into the queue.

use cratemill_protocol::{FailureClass, JobState, Outcome};
use cratemill_store::{
    PgConnection, faults, queue,
    queue::{End, Ended, Held},
    sessions::Gone,
    versions,
};
use rand::Rng;
use std::time::Duration;

/// Attempts that builders took and that end in a class that is ours, until the job has failed.
pub const MAX_TRIES: i32 = 5;
/// All attempts, with those that nobody took: they say nothing about the job, but something is wrong for hours by then.
pub const MAX_ATTEMPTS: i32 = 50;
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_mins(10);
/// What a person reads of a failure; the log has the rest.
const MAX_MESSAGE_CHARS: usize = 2_000;

/// What follows from the end of an attempt.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Succeeded,
    Cancelled,
    Failed { class: FailureClass, message: String },
    Retry { class: FailureClass, message: String },
}

/// Where the job stands when its attempt ends.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// Before this attempt.
    tries: i32,
    /// The number of this one.
    attempt: i32,
    /// A builder took it.
    accepted: bool,
    cancel_requested: bool,
    /// Its version was yanked or blocked since.
    withdrawn: bool,
}

impl Standing {
    fn of(held: &Held, withdrawn: bool) -> Self {
        let Held { tries, accepted, cancel_requested, .. } = *held;
        Self { tries, attempt: held.attempt.0, accepted, cancel_requested, withdrawn }
    }

    /// Another attempt is worth it.
    fn goes_on(self) -> bool {
        self.tries + i32::from(self.accepted) < MAX_TRIES && self.attempt < MAX_ATTEMPTS
    }
}

fn next(outcome: &Outcome, job: Standing) -> Next {
    let (class, message) = match outcome {
        Outcome::Succeeded { .. } => return Next::Succeeded,
        _ if job.cancel_requested => return Next::Cancelled,
        // Nobody asked for it, so the builder gave the job up: that is our trouble, not the crate's.
        Outcome::Cancelled => (FailureClass::Infrastructure, "the builder gave the job up".to_owned()),
        Outcome::Failed { class, message, .. } => (*class, message.clone()),
    };
    if !class.is_retried() || !job.goes_on() {
        Next::Failed { class, message }
    } else if job.withdrawn {
        // As if it had been in the queue.
        Next::Cancelled
    } else {
        Next::Retry { class, message }
    }
}

/// Exponential backoff with full jitter: a random part of a bound that doubles with each attempt, the first of which is
/// number 1. `random` is from 0 to 1.
pub fn retry_delay(attempt: i32, random: f64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << attempt.saturating_sub(1).clamp(0, 16));
    doubled.min(LONGEST_DELAY).mul_f64(random.clamp(0.0, 1.0))
}

/// Ends the attempt of a held job, and with it the job, or queues it again. Returns the job's state.
pub async fn end(
    conn: &mut PgConnection,
    held: &Held,
    outcome: &Outcome,
    last_seq: Option<u64>,
) -> Result<JobState, cratemill_store::Error> {
    let ended = Ended { outcome, last_seq };
    judge(conn, held, outcome).await?;
    let withdrawn = versions::is_withdrawn(conn, held.version).await?;
    let end = match next(outcome, Standing::of(held, withdrawn)) {
        Next::Retry { class, message } => {
            let delay = retry_delay(held.attempt.0, rand::rng().random());
            queue::retry_later(conn, held, (class, &message), delay.as_secs_f64(), ended).await?;
            return Ok(JobState::Queued);
        }
        Next::Failed { class, message } => {
            queue::finish(conn, held, End::Failed { class, message: &message }, ended).await?;
            return Ok(JobState::Failed);
        }
        Next::Succeeded => End::Succeeded,
        Next::Cancelled => End::Cancelled,
    };
    let state = end.state();
    queue::finish(conn, held, end, ended).await?;
    Ok(state)
}

/// What the session of its builder has to know of a held attempt's end.
pub fn gone(held: &Held) -> Gone {
    Gone { builder: held.builder, job: held.id, attempt: held.attempt, accepted: held.accepted }
}

/// A builder that keeps ending attempts badly gets the next ones later and later. Comes before the attempt leaves its lease.
async fn judge(
    conn: &mut PgConnection,
    held: &Held,
    outcome: &Outcome,
) -> Result<(), cratemill_store::Error> {
    let good = match outcome {
        Outcome::Succeeded { .. } => true,
        Outcome::Failed { class, .. } => !class.is_retried(),
        Outcome::Cancelled => held.cancel_requested,
    };
    if good {
        return faults::forget(conn, &[held.builder]).await;
    }
    if let Some(pause_s) = faults::note(conn, held.id, held.attempt).await? {
        tracing::warn!(builder = %held.builder, pause_s, "one attempt after the other ends badly: the builder gets no job for a while");
    }
    Ok(())
}

/// An outcome whose text the database takes: bounded, and without NUL.
pub fn clean(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed { class, message, stage, timings } => {
            let message = message.chars().filter(|c| *c != '\0').take(MAX_MESSAGE_CHARS).collect();
            Outcome::Failed { class, message, stage, timings }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::job::Timings;
    use proptest::prelude::*;

    fn failed(class: FailureClass) -> Outcome {
        Outcome::Failed { class, message: "m".into(), stage: None, timings: Timings::default() }
    }

    /// The attempt after so many tries, all of which builders took.
    fn after(tries: i32) -> Standing {
        Standing { tries, attempt: tries + 1, accepted: true, ..Standing::default() }
    }

    #[test]
    fn table() {
        let succeeded = Outcome::Succeeded { timings: Timings::default() };
        let cancel = Standing { cancel_requested: true, ..after(0) };
        let message = || "m".to_owned();
        for class in FailureClass::ALL.iter().copied() {
            let first = next(&failed(class), after(0));
            if class.is_retried() {
                assert_eq!(first, Next::Retry { class, message: message() });
                assert!(matches!(next(&failed(class), after(3)), Next::Retry { .. }));
                assert_eq!(next(&failed(class), after(4)), Next::Failed { class, message: message() });
            } else {
                assert_eq!(first, Next::Failed { class, message: message() });
            }
            assert_eq!(next(&failed(class), cancel), Next::Cancelled);
        }
        // What is good is kept, even if somebody changed their mind.
        assert_eq!(next(&succeeded, cancel), Next::Succeeded);
        assert_eq!(next(&Outcome::Cancelled, cancel), Next::Cancelled);
        assert!(matches!(next(&Outcome::Cancelled, after(0)), Next::Retry { .. }));
        let withdrawn = Standing { withdrawn: true, ..after(0) };
        assert_eq!(next(&failed(FailureClass::Lost), withdrawn), Next::Cancelled);
        assert!(matches!(next(&failed(FailureClass::Build), withdrawn), Next::Failed { .. }));
        assert_eq!(next(&succeeded, withdrawn), Next::Succeeded);
    }

    #[test]
    fn what_nobody_took_is_no_try_but_has_a_bound() {
        for (attempt, again) in [(1, true), (49, true), (50, false), (51, false)] {
            let job = Standing { tries: 4, attempt, ..Standing::default() };
            let next = next(&failed(FailureClass::Lost), job);
            assert_eq!(matches!(next, Next::Retry { .. }), again, "{attempt}");
        }
    }

    #[test]
    fn delays_double_up_to_ten_minutes() {
        let bounds: Vec<u64> = (1..10).map(|attempt| retry_delay(attempt, 1.0).as_secs()).collect();
        assert_eq!(bounds, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
    }

    proptest! {
        #[test]
        fn any_delay_is_within_its_bound(attempt in any::<i32>(), random in any::<f64>()) {
            prop_assume!(!random.is_nan());
            prop_assert!(retry_delay(attempt, random) <= LONGEST_DELAY);
        }
    }

    #[test]
    fn messages_are_bounded_and_have_no_nul() {
        let long = Outcome::Failed {
            class: FailureClass::Build,
            message: "a\0".repeat(5_000),
            stage: None,
            timings: Timings::default(),
        };
        let Outcome::Failed { message, .. } = clean(long) else { panic!("still a failure") };
        assert_eq!(message, "a".repeat(MAX_MESSAGE_CHARS));
    }
}

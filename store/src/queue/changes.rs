//! What a change of a job says to those who follow it.

use cratemill_protocol::{
    Attempt, BuilderId, CrateName, FailureClass, Features, JobId, JobState, Kind, Priority, Stage, Target,
    bus::JobChanged,
};

/// The columns of [`Subject`], of whichever table the job is in.
macro_rules! subject {
    ($table:literal) => {
        concat!(
            $table,
            ".job_id, ",
            $table,
            ".attempt, ",
            $table,
            ".krate, ",
            $table,
            ".version, ",
            $table,
            ".kind, ",
            $table,
            ".target, ",
            $table,
            ".features, ",
            $table,
            ".priority"
        )
    };
}
pub(super) use subject;

/// Which job a change is about.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Subject {
    #[sqlx(try_from = "i64", rename = "job_id")]
    pub(super) job: JobId,
    #[sqlx(try_from = "i32")]
    pub(super) attempt: Attempt,
    #[sqlx(try_from = "String")]
    pub(super) krate: CrateName,
    pub(super) version: String,
    #[sqlx(try_from = "String")]
    pub(super) kind: Kind,
    #[sqlx(try_from = "String")]
    pub(super) target: Target,
    #[sqlx(try_from = "String")]
    pub(super) features: Features,
    #[sqlx(try_from = "i16")]
    pub(super) priority: Priority,
}

impl Subject {
    pub(super) fn becomes(self, state: JobState) -> JobChanged {
        JobChanged {
            job: self.job,
            krate: self.krate,
            version: self.version,
            kind: self.kind,
            target: self.target,
            features: self.features,
            priority: self.priority,
            state,
            attempt: self.attempt,
            stage: None,
            builder: None,
            failure: None,
            message: None,
        }
    }
}

/// The rest of what is said of a job that a builder has, or had.
pub(super) fn with_builder(mut changed: JobChanged, builder: BuilderId, stage: Option<Stage>) -> JobChanged {
    changed.builder = Some(builder);
    changed.stage = stage;
    changed
}

pub(super) fn with_failure(
    mut changed: JobChanged,
    failure: Option<FailureClass>,
    message: Option<String>,
) -> JobChanged {
    changed.failure = failure;
    changed.message = message;
    changed
}

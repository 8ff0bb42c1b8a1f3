//! What a simulated builder reads and writes in MessagePack. Of most messages it needs two fields, and it gets thousands
//! a second: it reads those, without the rest of the job.

use anyhow::Result;
use cratemill_protocol::{
    Attempt, FailureClass, JobId, Outcome,
    builder::{ClientMessage, JobRef, JobResponse, ServerMessage},
    codec::Encoding,
    job::Timings,
};
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// The fields of all server messages that matter here.
#[derive(Debug, Deserialize)]
pub(super) struct Incoming<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: &'a str,
    #[serde(default)]
    pub(super) jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Job {
    id: JobId,
    attempt: Attempt,
}

impl Job {
    pub(super) fn of(&self) -> JobRef {
        JobRef { job: self.id, attempt: self.attempt }
    }
}

pub(super) fn peek(bytes: &[u8]) -> Result<Incoming<'_>> {
    Ok(rmp_serde::from_slice(bytes)?)
}

pub(super) fn decode(bytes: &[u8]) -> Result<ServerMessage> {
    Ok(Encoding::MsgPack.decode(bytes)?)
}

pub(super) fn frame(message: &ClientMessage) -> Message {
    Message::Binary(Bytes::from(Encoding::MsgPack.encode(message)))
}

/// The end of every job as soon as it began: the crate's fault, so that it is final. Only the job differs.
#[derive(Debug)]
pub(super) struct Failure(JobResponse);

impl Failure {
    pub(super) fn new() -> Self {
        let outcome = Outcome::Failed {
            class: FailureClass::Build,
            message: "simulated".into(),
            stage: None,
            timings: Timings::default(),
        };
        let (job, attempt) = (JobId(0), Attempt(0));
        Self(JobResponse { job, attempt, outcome, last_seq: 0, manifest: None, signature: None })
    }

    pub(super) fn of(&mut self, of: JobRef) -> Message {
        /// As [`ClientMessage::JobResponse`] is written, without owning the response.
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Borrowed<'a> {
            JobResponse(&'a JobResponse),
        }
        (self.0.job, self.0.attempt) = (of.job, of.attempt);
        Message::Binary(Bytes::from(Encoding::MsgPack.encode(&Borrowed::JobResponse(&self.0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Features, Kind, Limits, Sha256Hex, Target, builder, token::Token};

    #[test]
    fn only_what_matters_is_read() {
        let of = JobRef { job: JobId(7), attempt: Attempt(2) };
        let job = builder::Job {
            id: of.job,
            attempt: of.attempt,
            krate: "hello".parse().unwrap(),
            version: "1.0.0".into(),
            source: "https://registry.example/hello".into(),
            sha256: Sha256Hex::of(b"x"),
            index: None,
            kind: Kind::Metadata,
            target: Target::any(),
            features: Features::default(),
            limits: Limits::default(),
            lease_s: 60,
            token: Token::new("t"),
            upload: "https://build.example".into(),
        };
        let bytes = Encoding::MsgPack.encode(&ServerMessage::Jobs { jobs: vec![job] });
        let incoming = peek(&bytes).unwrap();
        assert_eq!((incoming.kind, incoming.jobs.len(), incoming.jobs[0].of()), ("jobs", 1, of));
        let bytes = Encoding::MsgPack.encode(&ServerMessage::JobDone(of));
        assert_eq!(peek(&bytes).unwrap().kind, "job_done");
    }

    #[test]
    fn a_failure_is_a_message_of_the_protocol() {
        let of = JobRef { job: JobId(7), attempt: Attempt(2) };
        let Message::Binary(bytes) = Failure::new().of(of) else { panic!("a binary frame") };
        match Encoding::MsgPack.decode(&bytes).unwrap() {
            ClientMessage::JobResponse(response) => {
                assert_eq!((response.job, response.attempt), (of.job, of.attempt));
            }
            other => panic!("{other:?}"),
        }
    }
}

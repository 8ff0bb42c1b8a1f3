//! Attempts that outlive connections.

use crate::{
    fixture,
    peer::{Line, Peer},
};
use cratemill_builder::agent::Signal;
use cratemill_protocol::{
    Attempt, JobId, Outcome,
    builder::{
        CancelReason, ClientMessage, Event, JobEvent, JobRef, JobResponse, Resume, Resumed, ServerMessage,
    },
    token::Token,
};

const JOB: JobRef = JobRef { job: JobId(7), attempt: Attempt(1) };

/// The next event of the job.
async fn event(line: &mut Line) -> JobEvent {
    loop {
        match line.receive().await {
            ClientMessage::JobEvent(event) => return event,
            ClientMessage::Heartbeat(_)
            | ClientMessage::JobRequest { .. }
            | ClientMessage::JobAccepted(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn ack(line: &mut Line, seq: u64) {
    line.send(ServerMessage::EventAck { job: JOB.job, attempt: JOB.attempt, seq }).await;
}

/// Acks all events until the outcome comes.
async fn outcome(line: &mut Line, events: &mut Vec<JobEvent>) -> JobResponse {
    loop {
        match line.receive().await {
            ClientMessage::JobEvent(event) => {
                assert_eq!(event.seq, events.len() as u64 + 1, "in order, without gaps");
                ack(line, event.seq).await;
                events.push(event);
            }
            ClientMessage::JobResponse(response) => return response,
            ClientMessage::Heartbeat(beat) => assert_eq!(beat.running, [JOB]),
            ClientMessage::JobRequest { slots } => assert_eq!(slots, 1),
            other => panic!("{other:?}"),
        }
    }
}

/// The job goes on, with a fresh token.
fn resumed(next_seq: u64) -> Resumed {
    let JobRef { job, attempt } = JOB;
    Resumed::Continue { job, attempt, next_seq, lease_s: 60, token: Token::new("renewed") }
}

#[tokio::test]
async fn events_and_the_outcome_are_sent_again_until_they_are_acknowledged() {
    let mut peer = Peer::start().await;
    // As if the first token had expired: the upload waits for the one that the reconnect brings.
    peer.service.store.lock().unwrap().upload_token = Some("Bearer renewed".into());
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![]).await;
    let job = peer.job(7, &hello.targets[0], fixture::demo(&[fixture::HELLO]));
    line.send(ServerMessage::Jobs { jobs: vec![job.clone()] }).await;
    let first = event(&mut line).await;
    let second = event(&mut line).await;
    assert_eq!((first.seq, second.seq), (1, 2));
    // The ack of the first arrives, that of the second is lost with the connection.
    ack(&mut line, 1).await;
    while event(&mut line).await.seq < 3 {}
    drop(line);

    let mut line = peer.accept().await;
    let hello = line.log_in(vec![resumed(2)]).await;
    assert_eq!(hello.resume, [Resume { job: JOB.job, attempt: JOB.attempt, next_seq: 2 }]);
    assert_eq!(line.receive().await, ClientMessage::JobEvent(second), "the same event under the same number");
    ack(&mut line, 2).await;
    let mut events = vec![first.clone(), first];
    let response = loop {
        // What the interrupted connection had sent comes again; then the rest.
        match line.receive().await {
            ClientMessage::JobRequest { slots } => assert_eq!(slots, 1),
            ClientMessage::JobEvent(event) => {
                assert_eq!(event.seq, events.len() as u64 + 1);
                ack(&mut line, event.seq).await;
                events.push(event);
                break outcome(&mut line, &mut events).await;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(response.outcome, Outcome::Succeeded { .. }), "{response:?}");
    assert_eq!(response.last_seq, events.len() as u64);
    drop(line);

    // The outcome was not acknowledged: it comes again, on whichever node.
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![resumed(response.last_seq + 1)]).await;
    assert_eq!(hello.resume[0].next_seq, response.last_seq + 1);
    assert_eq!(line.receive().await, ClientMessage::JobResponse(response));
    line.send(ServerMessage::JobDone(JOB)).await;
    loop {
        match line.receive().await {
            ClientMessage::JobRequest { slots: 2 } => break,
            ClientMessage::JobRequest { slots: 1 } | ClientMessage::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    builder.signals.send(Signal::Drain).await.unwrap();
    builder.ended().await.unwrap();
}

#[tokio::test]
async fn a_lost_lease_stops_the_build_and_says_nothing_more() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![]).await;
    let endless = fixture::with_build_script("loop { std::thread::park(); }");
    line.send(ServerMessage::Jobs { jobs: vec![peer.job(7, &hello.targets[0], endless)] }).await;
    event(&mut line).await;
    let why = CancelReason::LeaseLost;
    line.send(ServerMessage::Cancel { job: JOB.job, attempt: JOB.attempt, grace_s: 0, why }).await;
    loop {
        match line.receive().await {
            ClientMessage::JobRequest { slots: 2 } => break,
            ClientMessage::JobResponse(response) => panic!("{response:?}"),
            _ => {}
        }
    }
    builder.signals.send(Signal::Drain).await.unwrap();
    builder.ended().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_job_ends_as_cancelled() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![]).await;
    let endless = fixture::with_build_script("loop { std::thread::park(); }");
    line.send(ServerMessage::Jobs { jobs: vec![peer.job(7, &hello.targets[0], endless)] }).await;
    let mut events = Vec::new();
    loop {
        let event = event(&mut line).await;
        ack(&mut line, event.seq).await;
        let compiling = matches!(&event.event, Event::Log { text, .. } if text.contains("Compiling"));
        events.push(event);
        if compiling {
            break;
        }
    }
    let why = CancelReason::Cancelled;
    line.send(ServerMessage::Cancel { job: JOB.job, attempt: JOB.attempt, grace_s: 0, why }).await;
    let response = outcome(&mut line, &mut events).await;
    assert_eq!(response.outcome, Outcome::Cancelled);
    line.send(ServerMessage::JobDone(JOB)).await;
    builder.signals.send(Signal::Drain).await.unwrap();
    builder.ended().await.unwrap();
}

#[tokio::test]
async fn an_abort_leaves_no_process_and_no_folder() {
    let mut peer = Peer::start().await;
    let builder = Peer::dial(peer.config());
    let mut line = peer.accept().await;
    let hello = line.log_in(vec![]).await;
    let endless = fixture::with_build_script(
        "std::process::Command::new(\"/bin/sleep\").arg(\"5151\").status().unwrap();",
    );
    line.send(ServerMessage::Jobs { jobs: vec![peer.job(7, &hello.targets[0], endless)] }).await;
    loop {
        let event = event(&mut line).await;
        ack(&mut line, event.seq).await;
        if matches!(&event.event, Event::Log { text, .. } if text.contains("Compiling")) {
            break;
        }
    }
    builder.signals.send(Signal::Abort).await.unwrap();
    while !matches!(line.receive().await, ClientMessage::Goodbye { .. }) {}
    assert!(builder.ended().await.unwrap_err().to_string().contains("stopped before"));
    let left = std::fs::read_dir(peer.folder.path().join("work/jobs")).unwrap().count();
    assert_eq!(left, 0);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert_ne!(command, b"/bin/sleep\x005151\0");
    }
}

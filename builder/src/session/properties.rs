//! Random events, acks, losses and reconnects: the server sees every event once, in order, and the outcome after them.

use super::{
    Effect, Input,
    tests::{failed, job, job_ref, log, receive, session, welcome},
};
use cratemill_protocol::{
    JobId,
    builder::{ClientMessage, Event, JobRef, Resumed, ServerMessage},
    token::Token,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Instant};

const JOBS: [i64; 2] = [1, 2];
const IN_FLIGHT: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A job says something.
    Say(usize),
    /// The server reads so many messages from the wire and stores them.
    Store(usize),
    /// The builder reads so many acks from the wire.
    Deliver(usize),
    /// Everything on the wire is lost.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..JOBS.len()).prop_map(Step::Say),
        4 => (1_usize..5).prop_map(Step::Store),
        4 => (1_usize..5).prop_map(Step::Deliver),
        1 => Just(Step::Reconnect),
    ]
}

/// A server that stores what it sees, as the protocol says, and the two directions of the wire.
struct World {
    session: super::Session,
    now: Instant,
    to_server: Vec<ClientMessage>,
    to_builder: Vec<ServerMessage>,
    stored: BTreeMap<i64, Vec<Event>>,
    /// On this connection: sent and not yet acknowledged to the builder.
    in_flight: BTreeMap<i64, i64>,
    said: BTreeMap<i64, usize>,
    done: Vec<i64>,
    outcomes: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            session: session(2),
            now: Instant::now(),
            to_server: vec![],
            to_builder: vec![],
            stored: JOBS.iter().map(|id| (*id, vec![])).collect(),
            in_flight: BTreeMap::new(),
            said: JOBS.iter().map(|id| (*id, 0)).collect(),
            done: vec![],
            outcomes: 0,
        };
        world.connect();
        let jobs = JOBS.iter().map(|id| job(*id, 1)).collect();
        world.give(ServerMessage::Jobs { jobs });
        world
    }

    fn connect(&mut self) {
        self.to_server.clear();
        self.to_builder.clear();
        self.in_flight.clear();
        self.input(Input::Disconnected);
        self.input(Input::Connected);
        let Some(ClientMessage::Hello(hello)) = self.to_server.pop() else { panic!("hello comes first") };
        let resumed = hello.resume.iter().map(|resume| {
            let stored = self.stored[&resume.job.0].len() as u64;
            assert!(resume.next_seq <= stored + 1, "what was acknowledged was stored");
            let (job, attempt) = (resume.job, resume.attempt);
            if self.done.contains(&job.0) {
                return Resumed::Lost { job, attempt };
            }
            Resumed::Continue { job, attempt, next_seq: stored + 1, lease_s: 60, token: Token::new("t") }
        });
        let resumed = resumed.collect();
        self.give(welcome(IN_FLIGHT, resumed));
    }

    fn input(&mut self, input: Input) {
        let effects = self.session.handle(input, self.now);
        self.take(effects);
    }

    fn give(&mut self, message: ServerMessage) {
        let effects = receive(&mut self.session, message, self.now);
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(message) => {
                    if let ClientMessage::JobEvent(event) = &message {
                        let in_flight = self.in_flight.entry(event.job.0).or_default();
                        *in_flight += 1;
                        assert!(*in_flight <= i64::from(IN_FLIGHT), "the window is bounded");
                    }
                    self.to_server.push(message);
                }
                Effect::Reconnect { why, .. } => panic!("{why}"),
                _ => {}
            }
        }
    }

    fn store(&mut self, count: usize) {
        for message in self.to_server.drain(..count.min(self.to_server.len())).collect::<Vec<_>>() {
            match message {
                ClientMessage::JobEvent(event) => {
                    let stored = self.stored.get_mut(&event.job.0).unwrap();
                    let next = stored.len() as u64 + 1;
                    assert!(event.seq <= next, "no gap");
                    if event.seq == next {
                        stored.push(event.event);
                    }
                    let seq = stored.len() as u64;
                    self.to_builder.push(ServerMessage::EventAck {
                        job: event.job,
                        attempt: event.attempt,
                        seq,
                    });
                }
                ClientMessage::JobResponse(response) => {
                    assert_eq!(
                        response.last_seq,
                        self.stored[&response.job.0].len() as u64,
                        "events come first"
                    );
                    self.outcomes += 1;
                    self.done.push(response.job.0);
                    let done = JobRef { job: response.job, attempt: response.attempt };
                    self.to_builder.push(ServerMessage::JobDone(done));
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, count: usize) {
        for message in self.to_builder.drain(..count.min(self.to_builder.len())).collect::<Vec<_>>() {
            if let ServerMessage::EventAck { job, .. } = &message {
                // Each ack is for one event at least; repeated ones only free what is sent again.
                *self.in_flight.entry(job.0).or_default() -= 1;
            }
            self.give(message);
        }
    }

    fn say(&mut self, id: i64) {
        let said = self.said.get_mut(&id).unwrap();
        *said += 1;
        let event = log(&format!("{id}-{said}"));
        self.input(Input::Event(job_ref(id, 1), event));
    }

    fn settle(&mut self) {
        while !self.to_server.is_empty() || !self.to_builder.is_empty() {
            self.store(usize::MAX);
            self.deliver(usize::MAX);
        }
    }
}

proptest! {
    #[test]
    fn every_event_once_in_order_and_then_the_outcome(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Say(index) => world.say(JOBS[index]),
                Step::Store(count) => world.store(count),
                Step::Deliver(count) => world.deliver(count),
                Step::Reconnect => world.connect(),
            }
        }
        for id in JOBS {
            world.input(Input::Finished(job_ref(id, 1), Box::new(failed())));
        }
        world.connect();
        world.settle();
        for (id, said) in &world.said {
            let expected: Vec<_> = (1..=*said).map(|n| log(&format!("{id}-{n}"))).collect();
            prop_assert_eq!(&world.stored[id], &expected);
        }
        prop_assert_eq!(world.outcomes, JOBS.len());
        prop_assert_eq!(world.session.attempts().count(), 0);
        prop_assert!(JOBS.iter().all(|id| world.done.contains(&JobId(*id).0)));
    }
}

//! Whoever comes and goes, at whichever node: each gets what is published while it is subscribed, once and in order.

use super::{Answer, Client, node};
use crate::farm::{Farm, Node};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sqlx::PgPool;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

const SESSIONS: usize = 3;
const SUBSCRIPTIONS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    /// At one of the nodes; a connection that is there is taken over.
    Come(usize, usize),
    /// With a goodbye.
    Go(usize),
    /// Without one.
    Vanish(usize),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    Publish(usize, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (session, subscription) = (0..SESSIONS, 0..SUBSCRIPTIONS);
    prop_oneof![
        4 => (session.clone(), 0_usize..2).prop_map(|(who, node)| Step::Come(who, node)),
        3 => session.clone().prop_map(Step::Go),
        1 => session.clone().prop_map(Step::Vanish),
        3 => (session.clone(), subscription.clone()).prop_map(|(who, to)| Step::Subscribe(who, to)),
        1 => (session.clone(), subscription.clone()).prop_map(|(who, to)| Step::Unsubscribe(who, to)),
        6 => (session, subscription, 1_usize..20).prop_map(|(who, to, count)| Step::Publish(who, to, count)),
    ]
}

/// A session as the test knows it.
struct Session {
    id: Uuid,
    client: Option<Client>,
    subscribed: HashSet<usize>,
    /// Numbers of what it is to get of each subscription, in order.
    due: HashMap<usize, Vec<usize>>,
    /// And the ids of what it got.
    got: HashMap<Uuid, Vec<Uuid>>,
    /// It went without a goodbye once: what it had not confirmed comes again.
    vanished: bool,
}

impl Session {
    fn take(&mut self, issues: impl IntoIterator<Item = (Uuid, Uuid)>) {
        for (subscription, publication) in issues {
            self.got.entry(subscription).or_default().push(publication);
        }
    }
}

struct World {
    nodes: [Node; 2],
    subscriptions: Vec<Uuid>,
    sessions: Vec<Session>,
    /// How many were published to each.
    published: Vec<usize>,
}

impl World {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Come(who, node) => self.come(who, node).await,
            Step::Go(who) => {
                let session = &mut self.sessions[who];
                if let Some(client) = session.client.take() {
                    let issues = client.close().await;
                    session.take(issues);
                }
            }
            Step::Vanish(who) => {
                let session = &mut self.sessions[who];
                if let Some(client) = session.client.take() {
                    session.vanished = true;
                    session.take(client.issues);
                }
            }
            Step::Subscribe(who, to) => {
                let (session, subscription) = (&mut self.sessions[who], self.subscriptions[to]);
                let Some(client) = &mut session.client else { return };
                client.subscribe(subscription).await;
                client.settle().await;
                session.subscribed.insert(to);
            }
            Step::Unsubscribe(who, to) => {
                let (session, subscription) = (&mut self.sessions[who], self.subscriptions[to]);
                let Some(client) = &mut session.client else { return };
                client.unsubscribe(subscription).await;
                if !session.subscribed.remove(&to) {
                    assert_eq!(client.answer().await, Answer::Error("unknown_subscription".into()));
                }
                client.settle().await;
                // What came before may not have been written: nobody promised it.
                self.forget(who, to);
            }
            Step::Publish(who, to, count) => self.publish(who, to, count).await,
        }
    }

    async fn come(&mut self, who: usize, node: usize) {
        let client = Client::open(&self.nodes[node], self.sessions[who].id).await;
        let session = &mut self.sessions[who];
        if let Some(mut before) = session.client.replace(client) {
            // What it had is confirmed or comes again.
            session.vanished = true;
            while before.read().await.is_some() {}
            session.take(before.issues);
        }
        if let Some(client) = &mut session.client {
            client.settle().await;
        }
    }

    fn forget(&mut self, who: usize, to: usize) {
        let (session, subscription) = (&mut self.sessions[who], self.subscriptions[to]);
        session.due.remove(&to);
        session.got.remove(&subscription);
        if let Some(client) = &mut session.client {
            client.issues.retain(|(of, _)| *of != subscription);
        }
    }

    async fn publish(&mut self, who: usize, to: usize, count: usize) {
        let exists = self.sessions.iter().any(|session| session.subscribed.contains(&to));
        let Some(client) = &mut self.sessions[who].client else { return };
        for _ in 0..count {
            client.publish(self.subscriptions[to], b"x").await;
        }
        if !exists {
            for _ in 0..count {
                assert_eq!(client.answer().await, Answer::Error("unknown_subscription".into()));
            }
            return;
        }
        client.settle().await;
        let first = self.published[to];
        self.published[to] += count;
        for session in self.sessions.iter_mut().filter(|session| session.subscribed.contains(&to)) {
            session.due.entry(to).or_default().extend(first..first + count);
        }
    }

    /// All come back, and have what they are due.
    async fn verify(&mut self) {
        let mut logs = Vec::new();
        for subscription in self.subscriptions.clone() {
            let mut reader = Client::open(&self.nodes[0], Uuid::new_v4()).await;
            logs.push(match reader.index(subscription).await {
                Answer::Index(ids) => ids,
                Answer::Error(_) => Vec::new(),
                other @ Answer::Entries(_) => panic!("{other:?}"),
            });
        }
        for (to, log) in logs.iter().enumerate() {
            assert_eq!(log.len(), self.published[to], "nothing that was published is lost");
        }
        for who in 0..SESSIONS {
            self.step(Step::Go(who)).await;
            self.come(who, 1).await;
            let session = &mut self.sessions[who];
            for (to, due) in session.due.clone() {
                let subscription = self.subscriptions[to];
                let expected: Vec<Uuid> = due.iter().map(|number| logs[to][*number]).collect();
                let has = |session: &Session| {
                    let got: HashSet<_> = session.got.get(&subscription).into_iter().flatten().collect();
                    expected.iter().all(|id| got.contains(id))
                };
                while !has(session) {
                    let issue = session.client.as_mut().unwrap().issue().await;
                    session.take([issue]);
                }
                let got = &session.got[&subscription];
                if session.vanished {
                    // Once, if what came again is left out.
                    let mut seen = HashSet::new();
                    let first: Vec<Uuid> = got.iter().filter(|id| seen.insert(**id)).copied().collect();
                    assert_eq!(first, expected, "session {who}, subscription {to}");
                } else {
                    assert_eq!(*got, expected, "session {who}, subscription {to}");
                }
            }
        }
    }
}

async fn play(pool: PgPool, steps: Vec<Step>) {
    let farm = Farm::start(pool).await;
    let nodes = [node(&farm).await, node(&farm).await];
    let session = || Session {
        id: Uuid::new_v4(),
        client: None,
        subscribed: HashSet::new(),
        due: HashMap::new(),
        got: HashMap::new(),
        vanished: false,
    };
    let mut world = World {
        nodes,
        subscriptions: (0..SUBSCRIPTIONS).map(|_| Uuid::new_v4()).collect(),
        sessions: (0..SESSIONS).map(|_| session()).collect(),
        published: vec![0; SUBSCRIPTIONS],
    };
    for step in steps {
        world.step(step).await;
    }
    world.verify().await;
}

/// Each of these is a random run of its own.
macro_rules! runs {
    ($($name:ident: $seed:literal),+) => {$(
        #[sqlx::test(migrations = "../migrations")]
        async fn $name(pool: PgPool) {
            let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[$seed; 32]);
            let mut runner = TestRunner::new_with_rng(Config::default(), rng);
            let steps = prop::collection::vec(step(), 60..100).new_tree(&mut runner).unwrap().current();
            play(pool, steps).await;
        }
    )+};
}

runs! { run_1: 1, run_2: 2, run_3: 3, run_4: 4 }

//! Groups: each thing has one holder until that one has acknowledged it, or had its time.

use super::{Answer, Client, node, node_with};
use crate::farm::{Farm, PATIENCE};
use cratemill_stack::process::Signal;
use futures_util::{FutureExt as _, future::select_all};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::PgPool;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};
use tokio::time::timeout;
use uuid::Uuid;

const ACK_WAIT: Duration = Duration::from_secs(4);
/// From when the bus hands something out to when this test looks at it.
const MARGIN: Duration = Duration::from_secs(2);

/// Who got it, and when.
type Holders = HashMap<Uuid, (usize, Instant)>;

/// What has come meanwhile is seen now, whenever it is done: nobody gets what another one may still have.
fn look(members: &mut [Client], (who, item): (usize, Uuid), held: &mut Holders) {
    for (number, member) in members.iter_mut().enumerate() {
        while member.read().now_or_never().is_some() {}
        let now = Instant::now();
        let came = member.issues.iter().map(|(_, item)| *item).chain((number == who).then_some(item));
        for item in came {
            match held.get(&item) {
                Some((before, _)) if *before == number => continue,
                Some((before, since)) => {
                    let apart = now.duration_since(*since);
                    assert!(apart + MARGIN > ACK_WAIT, "{before} had it for {apart:?} only");
                }
                None => {}
            }
            held.insert(item, (number, now));
        }
    }
}

/// Members at two nodes that acknowledge, forget to, or go away and come back elsewhere.
async fn play(pool: PgPool, seed: u64) {
    const ITEMS: usize = 40;
    let farm = Farm::start(pool).await;
    let env = [("ACK_WAIT_S", "4")];
    let nodes = [node_with(&farm, &env).await, node_with(&farm, &env).await];
    let mut random = StdRng::seed_from_u64(seed);
    let (queue, ids) = (Uuid::new_v4(), [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()]);
    let mut members = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let mut member = Client::open(&nodes[number % 2], *id).await;
        member.subscribe_queue(queue, "workers").await;
        member.settle().await;
        members.push(member);
    }
    let mut publisher = Client::open(&nodes[0], Uuid::new_v4()).await;
    for _ in 0..ITEMS {
        publisher.publish(queue, b"work").await;
    }
    publisher.settle().await;
    let mut held = Holders::new();
    let mut acked = HashSet::new();
    let work = async {
        while acked.len() < ITEMS {
            let reads = members.iter_mut().map(|member| Box::pin(member.issue()));
            let ((_, item), who, _) = select_all(reads).await;
            assert!(!acked.contains(&item), "it was acknowledged, and came again");
            look(&mut members, (who, item), &mut held);
            match random.random_range(0..10) {
                // It forgets.
                0 => {}
                // It goes, and comes back at the other node: what it holds it still holds.
                1 => {
                    let node = &nodes[random.random_range(0..2)];
                    let before = std::mem::replace(&mut members[who], Client::open(node, ids[who]).await);
                    drop(before);
                    members[who].settle().await;
                }
                _ => {
                    let member = &mut members[who];
                    member.ack(item).await;
                    member.settle().await;
                    acked.insert(item);
                }
            }
        }
    };
    timeout(PATIENCE * 3, work).await.expect("all is done");
    // It is nobody's any more.
    for member in &mut members {
        assert!(member.issues.iter().all(|(_, item)| !acked.contains(item)));
        member.ack(*acked.iter().next().unwrap()).await;
        assert_eq!(member.answer().await, Answer::Error("unknown_publication".into()));
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn run_1(pool: PgPool) {
    play(pool, 1).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn run_2(pool: PgPool) {
    play(pool, 2).await;
}

/// What its members held goes to those of the other node.
#[sqlx::test(migrations = "../migrations")]
async fn a_node_that_dies_keeps_nothing_to_itself(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let env = [("ACK_WAIT_S", "1")];
    let (one, other) = (node_with(&farm, &env).await, node_with(&farm, &env).await);
    let queue = Uuid::new_v4();
    let mut dies = Client::open(&one, Uuid::new_v4()).await;
    dies.subscribe_queue(queue, "g").await;
    dies.settle().await;
    let mut publisher = Client::open(&other, Uuid::new_v4()).await;
    for _ in 0..10 {
        publisher.publish(queue, b"x").await;
    }
    publisher.settle().await;
    for _ in 0..10 {
        dies.issue().await;
    }
    one.process.signal(Signal::SIGKILL);
    let mut lives = Client::open(&other, Uuid::new_v4()).await;
    lives.subscribe_queue(queue, "g").await;
    let mut got = HashSet::new();
    while got.len() < 10 {
        let (_, item) = lives.issue().await;
        lives.ack(item).await;
        got.insert(item);
    }
    lives.settle().await;
}

/// The last member that leaves takes the group with it, and what it was to get; the log stays.
#[sqlx::test(migrations = "../migrations")]
async fn a_group_begins_where_its_first_member_comes(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = node(&farm).await;
    let queue = Uuid::new_v4();
    let (mut broadcast, mut worker) =
        (Client::open(&node, Uuid::new_v4()).await, Client::open(&node, Uuid::new_v4()).await);
    broadcast.subscribe(queue).await;
    broadcast.publish(queue, b"before").await;
    let (_, before) = broadcast.issue().await;
    for _ in 0..2 {
        worker.subscribe_queue(queue, "g").await;
        worker.settle().await;
        broadcast.publish(queue, b"work").await;
        let (_, item) = broadcast.issue().await;
        assert_eq!(worker.issue().await, (queue, item));
        worker.unsubscribe(queue).await;
        worker.settle().await;
        // To nobody of the group.
        broadcast.publish(queue, b"between").await;
        broadcast.issue().await;
    }
    worker.ack(before).await;
    assert_eq!(worker.answer().await, Answer::Error("unknown_publication".into()));
    let Answer::Index(log) = broadcast.index(queue).await else { panic!() };
    assert_eq!(log.len(), 5);
}

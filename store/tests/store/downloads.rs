//! Download counts: whatever the bus repeats or reorders, each download counts once.

use crate::support::{krate, record, running};
use cratemill_protocol::{
    ArtifactId,
    bus::{ClientClass, DownloadBatch, DownloadCount},
};
use cratemill_store::{PgConnection, PgPool, artifacts, builders, downloads};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::collections::BTreeMap;
use time::{Date, Month};

const DAY: i32 = 20_777;

async fn artifact(conn: &mut PgConnection, name: &str) -> ArtifactId {
    let running = running(conn, name).await;
    let file = record(conn, &running, "file").await;
    let held = running.held(conn).await;
    let key_id = builders::keys(conn, running.builder).await.unwrap()[0].0;
    let signed = artifacts::Signed { manifest: "", signature: "", key_id };
    artifacts::publish(conn, &held, &[file], signed).await.unwrap();
    artifacts::of_version(conn, running.version).await.unwrap()[0].id
}

fn batch(node: &str, epoch: i64, batch: u64, counts: &[(ArtifactId, u64)]) -> DownloadBatch {
    let counts = counts
        .iter()
        .map(|(artifact, count)| DownloadCount {
            artifact: *artifact,
            day: DAY,
            client: ClientClass::Curl,
            count: *count,
        })
        .collect();
    DownloadBatch { node: node.into(), epoch, batch, counts }
}

#[sqlx::test(migrations = "../migrations")]
async fn batches_count_once(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = artifact(&mut tx, "a").await;
    let first = batch("n", 1, 1, &[(id, 2), (ArtifactId(404), 5)]);
    assert_eq!(downloads::apply(&mut tx, &[first.clone(), first.clone()]).await.unwrap(), 7);
    assert_eq!(downloads::apply(&mut tx, &[first]).await.unwrap(), 0);
    assert_eq!(downloads::apply(&mut tx, &[]).await.unwrap(), 0);
    // The publisher started anew, and another one.
    downloads::apply(&mut tx, &[batch("n", 2, 1, &[(id, 1)]), batch("m", 1, 1, &[(id, 1)])]).await.unwrap();
    assert_eq!(downloads::total(&mut tx, &krate("A")).await.unwrap(), 4);
    let day = Date::from_calendar_date(2026, Month::November, 20).unwrap();
    let daily = downloads::of_crate(&mut tx, &krate("a"), day, day).await.unwrap();
    assert_eq!((daily.len(), daily[0].count, daily[0].client.as_str()), (1, 4, "curl"));
    assert_eq!((daily[0].version.as_str(), daily[0].kind.as_str()), ("1.0.0", "tarball"));
    assert_eq!(downloads::forget_publishers(&mut tx, 30).await.unwrap(), 0);
    assert_eq!(downloads::forget_publishers(&mut tx, -1).await.unwrap(), 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn numbers_beyond_all_sense_are_taken(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = artifact(&mut tx, "a").await;
    let mut mad = batch("n", i64::MIN, u64::MAX, &[(id, 1), (id, 1)]);
    mad.counts[0].day = i32::MAX;
    mad.counts[1].day = i32::MIN;
    downloads::apply(&mut tx, &[mad.clone()]).await.unwrap();
    assert_eq!(downloads::apply(&mut tx, &[mad]).await.unwrap(), 0);
    assert_eq!(downloads::total(&mut tx, &krate("a")).await.unwrap(), 2);
}

/// The bus repeats, groups and reorders as it likes.
#[sqlx::test(migrations = "../migrations")]
async fn any_order_and_any_repeats_give_the_same_sums(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let ids = [artifact(&mut conn, "a").await, artifact(&mut conn, "b").await];
    let counts = prop::collection::vec((0_usize..2, 0_u64..9), 0..4);
    let publishers = prop::collection::vec(prop::collection::vec(counts, 1..5), 1..4);
    let disorder = prop::collection::vec((any::<prop::sample::Index>(), 1_usize..4, any::<bool>()), 0..8);
    let strategy = (publishers, disorder);
    let mut runner = TestRunner::deterministic();
    for case in 0..32 {
        let (publishers, disorder) = strategy.new_tree(&mut runner).unwrap().current();
        let mut expected: BTreeMap<usize, u64> = BTreeMap::new();
        let mut sent = Vec::new();
        for (node, batches) in publishers.iter().enumerate() {
            for (number, counts) in (1..).zip(batches) {
                for (id, count) in counts {
                    *expected.entry(*id).or_default() += count;
                }
                let counts: Vec<_> = counts.iter().map(|(id, count)| (ids[*id], *count)).collect();
                sent.push(batch(&format!("n{node}"), case, number, &counts));
            }
        }
        // Parts come again, earlier or later, and groups are taken in any order.
        let mut groups: Vec<Vec<DownloadBatch>> = sent.chunks(3).map(<[_]>::to_vec).collect();
        for (at, len, reverse) in &disorder {
            let from = at.index(sent.len());
            let mut again = sent[from..(from + len).min(sent.len())].to_vec();
            if *reverse {
                again.reverse();
            }
            groups.insert(at.index(groups.len()), again);
        }
        let rotation = disorder.len() % groups.len();
        groups.rotate_left(rotation);
        for group in &mut groups {
            group.reverse();
        }

        let mut tx = pool.begin().await.unwrap();
        for group in &groups {
            downloads::apply(&mut tx, group).await.unwrap();
        }
        for (position, name) in ["a", "b"].iter().enumerate() {
            let total = downloads::total(&mut tx, &krate(name)).await.unwrap();
            let expected = expected.get(&position).copied().unwrap_or(0);
            assert_eq!(total.unsigned_abs(), expected, "case {case}: {groups:?}");
        }
        tx.rollback().await.unwrap();
    }
}

/// Two counters that take parts of the same never wait for each other in a circle.
#[sqlx::test(migrations = "../migrations")]
async fn counters_run_side_by_side(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let ids = [artifact(&mut conn, "a").await, artifact(&mut conn, "b").await];
    let tasks: Vec<_> = (0..4_u64)
        .map(|node| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for number in 1..=10 {
                    let own = batch(&format!("n{node}"), 1, number, &[(ids[1], 1), (ids[0], 1)]);
                    let shared = batch("shared", 1, number, &[(ids[0], 1)]);
                    let mut tx = pool.begin().await.unwrap();
                    downloads::apply(&mut tx, &[shared, own]).await.unwrap();
                    tx.commit().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(downloads::total(&mut conn, &krate("a")).await.unwrap(), 40 + 10);
    assert_eq!(downloads::total(&mut conn, &krate("b")).await.unwrap(), 40);
}

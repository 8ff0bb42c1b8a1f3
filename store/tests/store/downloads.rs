//! Download counts: whatever the bus repeats or reorders, each download counts once.

use crate::support::{LINUX, krate, record, running};
use cratemill_protocol::{
    ArtifactId, VersionId,
    bus::{ClientClass, DownloadBatch, DownloadCount, Install},
};
use cratemill_store::{
    PgConnection, PgPool, artifacts, builders, bulk, crates,
    downloads::{self, Applied, Axis, Group, Writer},
    versions,
};
use futures_util::TryStreamExt;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::{collections::BTreeMap, time::Duration};
use time::macros::date;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

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

fn writer(pool: &PgPool) -> Writer {
    Writer::new(bulk::beside(pool).unwrap())
}

async fn apply(writer: &mut Writer, batches: &[DownloadBatch]) -> u64 {
    let mut group = Group::default();
    for batch in batches {
        group.push(batch.clone());
    }
    writer.apply(&mut group).await.unwrap().counted
}

async fn total(conn: &mut PgConnection, name: &str) -> i64 {
    let row = crates::find(conn, &krate(name)).await.unwrap().unwrap();
    downloads::total(conn, row.id).await.unwrap()
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
    DownloadBatch { node: node.into(), epoch, batch, counts, installs: vec![] }
}

#[sqlx::test(migrations = "../migrations")]
async fn batches_count_once(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let id = artifact(&mut conn, "a").await;
    let first = batch("n", 1, 1, &[(id, 2), (ArtifactId(404), 5)]);
    let mut group = Group::default();
    group.push(first.clone());
    group.push(first.clone());
    let applied = writer.apply(&mut group).await.unwrap();
    assert_eq!((applied.counted, applied.homeless), (2, 5));
    assert_eq!(writer.apply(&mut group).await.unwrap(), Applied::default());
    assert_eq!(apply(&mut writer, &[first]).await, 0);
    assert_eq!(apply(&mut writer, &[]).await, 0);
    // The publisher started anew, and another one.
    apply(&mut writer, &[batch("n", 2, 1, &[(id, 1)]), batch("m", 1, 1, &[(id, 1)])]).await;
    assert_eq!(total(&mut conn, "A").await, 4);
    assert_eq!(downloads::forget_publishers(&mut conn, 30).await.unwrap(), 0);
    assert_eq!(downloads::forget_publishers(&mut conn, -1).await.unwrap(), 3);
}

/// A commit whose answer was lost, and one that failed: the same group again.
#[sqlx::test(migrations = "../migrations")]
async fn a_group_can_be_written_again(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let id = artifact(&mut conn, "a").await;
    let mut group = Group::default();
    group.push(batch("n", 1, 1, &[(id, 2)]));
    sqlx::query("ALTER TABLE download_sums RENAME TO away").execute(&mut *conn).await.unwrap();
    assert!(!writer.apply(&mut group).await.unwrap_err().is_permanent());
    sqlx::query("ALTER TABLE away RENAME TO download_sums").execute(&mut *conn).await.unwrap();
    assert_eq!(writer.apply(&mut group).await.unwrap().counted, 2);
    assert_eq!(writer.apply(&mut group).await.unwrap().counted, 0);
    assert_eq!(total(&mut conn, "a").await, 2);
}

/// Returns once one statement of this database waits for another transaction.
async fn one_waits(pool: &PgPool) {
    let waiting = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        while sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap() == 0 {}
    };
    timeout(PATIENCE, waiting).await.expect("it waits");
}

/// Whoever gives up, half-way through a transaction, leaves no connection behind on which the next one would go on.
#[sqlx::test(migrations = "../migrations")]
async fn a_group_that_is_given_up_takes_its_connection_with_it(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let bulk = bulk::beside(&pool).unwrap();
    let mut writer = Writer::new(bulk.clone());
    let id = artifact(&mut conn, "a").await;
    assert_eq!(apply(&mut writer, &[batch("n", 1, 1, &[(id, 1)])]).await, 1);
    assert_eq!(bulk.status().size, 1);
    let mut other = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM download_batches FOR UPDATE").execute(&mut *other).await.unwrap();
    let mut group = Group::default();
    group.push(batch("n", 1, 2, &[(id, 2)]));
    tokio::select! {
        applied = writer.apply(&mut group) => panic!("{applied:?}"),
        () = one_waits(&pool) => {}
    }
    assert_eq!(bulk.status().size, 0);
    other.rollback().await.unwrap();
    assert_eq!(writer.apply(&mut group).await.unwrap().counted, 2);
    assert_eq!((bulk.status().size, total(&mut conn, "a").await), (1, 3));
}

/// The mark of a publisher is forgotten just when it is heard of again.
#[sqlx::test(migrations = "../migrations")]
async fn nothing_is_counted_without_its_mark(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let id = artifact(&mut conn, "a").await;
    assert_eq!(apply(&mut writer, &[batch("n", 1, 1, &[(id, 1)])]).await, 1);
    // Between the moment in which it is there and that in which it is locked.
    sqlx::raw_sql(
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN DELETE FROM download_batches; RETURN NULL; END $$;
         CREATE TRIGGER forget AFTER INSERT ON download_batches EXECUTE FUNCTION forget()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let mut group = Group::default();
    group.push(batch("n", 1, 2, &[(id, 2)]));
    let error = writer.apply(&mut group).await.unwrap_err();
    assert!(matches!(error, downloads::Error::MarkGone) && !error.is_permanent(), "{error}");
    assert_eq!(total(&mut conn, "a").await, 1);
    sqlx::query("DROP TRIGGER forget ON download_batches").execute(&pool).await.unwrap();
    assert_eq!(writer.apply(&mut group).await.unwrap().counted, 2);
    assert_eq!(writer.apply(&mut group).await.unwrap().counted, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn numbers_beyond_all_sense_are_taken(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let id = artifact(&mut conn, "a").await;
    let mut mad = batch("n", i64::MIN, u64::MAX, &[(id, 1), (id, 1)]);
    mad.counts[0].day = i32::MAX;
    mad.counts[1].day = i32::MIN;
    apply(&mut writer, &[mad.clone()]).await;
    assert_eq!(apply(&mut writer, &[mad]).await, 0);
    assert_eq!(total(&mut conn, "a").await, 2);
}

/// Two versions for two targets, some days around the end of a month: every way of looking adds up to the same.
#[sqlx::test(migrations = "../migrations")]
async fn counts_are_read_by_day_and_by_what_they_are(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let ids = [artifact(&mut conn, "a").await, artifact(&mut conn, "b").await];
    let count = |id, day, client, count| DownloadCount { artifact: id, day, client, count };
    // 2026-11-29 to 2026-12-02.
    let counts = vec![
        count(ids[0], 20_786, ClientClass::Curl, 1),
        count(ids[0], 20_787, ClientClass::Curl, 2),
        count(ids[0], 20_788, ClientClass::Apt, 4),
        count(ids[0], 20_789, ClientClass::Apt, 8),
        count(ids[1], 20_787, ClientClass::Apt, 16),
    ];
    let batch = DownloadBatch { counts, ..batch("n", 1, 1, &[]) };
    assert_eq!(apply(&mut writer, &[batch]).await, 31);
    let (from, to) = (date!(2026 - 11 - 30), date!(2026 - 12 - 01));
    let a = crates::find(&mut conn, &krate("a")).await.unwrap().unwrap().id;
    let days = downloads::by_day(&mut conn, a, from, to).await.unwrap();
    assert_eq!(days.iter().map(|day| (day.day, day.count)).collect::<Vec<_>>(), [(from, 2), (to, 4)]);
    for (axis, expected) in [
        (Axis::Client, vec![("apt", 4), ("curl", 2)]),
        (Axis::Version, vec![("1.0.0", 6)]),
        (Axis::Target, vec![(LINUX, 6)]),
        (Axis::Kind, vec![("tarball", 6)]),
    ] {
        let counts = downloads::by_axis(&mut conn, a, axis, from, to).await.unwrap();
        let counts: Vec<_> = counts.iter().map(|count| (count.key.as_str(), count.count)).collect();
        assert_eq!(counts, expected, "{axis:?}");
    }
    let top = downloads::top(&mut conn, from, to, 10).await.unwrap();
    assert_eq!(
        top.iter().map(|top| (top.name.as_str(), top.count)).collect::<Vec<_>>(),
        [("b", 16), ("a", 6)]
    );
    assert_eq!(downloads::top(&mut conn, from, to, 1).await.unwrap().len(), 1);
    let version = crate_version(&mut conn, "a").await;
    assert_eq!(
        (total(&mut conn, "a").await, downloads::of_version(&mut conn, version).await.unwrap()),
        (15, 15)
    );

    let csv: Vec<_> = downloads::dump(&mut conn, from).await.unwrap().try_collect().await.unwrap();
    let expected = format!(
        "day,crate,version,target,kind,features,client,count\n\
         2026-11-30,a,1.0.0,{LINUX},tarball,default,curl,2\n2026-11-30,b,1.0.0,{LINUX},tarball,default,apt,16\n"
    );
    assert_eq!(String::from_utf8(csv.concat()).unwrap(), expected);
}

async fn crate_version(conn: &mut PgConnection, name: &str) -> VersionId {
    let krate = crates::find(conn, &krate(name)).await.unwrap().unwrap();
    versions::of_crate(conn, krate.id).await.unwrap()[0].id
}

/// What a month holds is the same before and after, and it can be counted up all the same.
#[sqlx::test(migrations = "../migrations")]
async fn an_old_month_is_written_anew(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let id = artifact(&mut conn, "a").await;
    for number in 1..=3 {
        apply(&mut writer, &[batch("n", 1, number, &[(id, number)])]).await;
    }
    let (month, next) = (date!(2026 - 11 - 01), date!(2026 - 12 - 01));
    assert_eq!(downloads::to_compact(&mut conn, date!(2026 - 11 - 30)).await.unwrap(), None);
    assert_eq!(downloads::to_compact(&mut conn, next).await.unwrap(), Some(month));
    // Somebody reads, and goes on reading.
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM download_counts").execute(&mut *reader).await.unwrap();
    assert!(!downloads::compact(&mut conn, month).await.unwrap());
    reader.rollback().await.unwrap();
    assert!(downloads::compact(&mut conn, month).await.unwrap());
    assert_eq!(downloads::to_compact(&mut conn, next).await.unwrap(), None);
    assert_eq!(total(&mut conn, "a").await, 6);
    apply(&mut writer, &[batch("n", 1, 4, &[(id, 4)])]).await;
    let counts: i64 = sqlx::query_scalar("SELECT sum(count)::bigint FROM download_counts_2026_11")
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert_eq!((total(&mut conn, "a").await, counts), (10, 10));
    let free: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_class WHERE relname = 'download_counts_2026_11' AND reloptions IS NULL",
    )
    .fetch_one(&mut *conn)
    .await
    .unwrap();
    assert_eq!(free, 1, "its pages are full");
}

fn requests(number: u64, id: ArtifactId, who: &[(i64, i64)]) -> DownloadBatch {
    let client = ClientClass::Binstall;
    let install =
        |(who, at_s): &(i64, i64)| Install { artifact: id, day: DAY, client, who: *who, at_s: *at_s };
    DownloadBatch { installs: who.iter().map(install).collect(), ..batch("n", 1, number, &[]) }
}

/// Two requests of one client are one download, wherever and in whichever order they come.
#[sqlx::test(migrations = "../migrations")]
async fn an_install_that_asks_twice_counts_once(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let (a, b) = (artifact(&mut conn, "a").await, artifact(&mut conn, "b").await);
    let mut number = 0;
    for (id, who, expected) in [
        // Both in one batch, then in two of them, then the later one first.
        (a, &[(1, 100), (1, 101)][..], 1),
        (a, &[(2, 100)], 1),
        (a, &[(2, 130)], 0),
        (b, &[(2, 130)], 1),
        (b, &[(2, 100)], 0),
        // Three people behind one address, and one whose second half comes later.
        (a, &[(3, 100), (3, 100), (3, 101), (3, 101), (3, 102), (3, 102), (3, 103)], 4),
        (a, &[(3, 104)], 0),
        // Another install, much later; another client at the same time.
        (a, &[(2, 1_000)], 1),
        (a, &[(4, 1_000)], 1),
        (a, &[(2, 1_001), (4, 1_001)], 0),
        // At the beginning of time, and at its end.
        (b, &[(5, i64::MIN)], 1),
        (b, &[(5, i64::MAX)], 1),
        // What waited for the bus, at once: two that never asked again, and the first half of a third; then its second.
        (a, &[(6, 9_000), (6, 100), (6, 4_000), (6, 4_001), (7, 100)], 4),
        (a, &[(6, 9_001)], 0),
    ] {
        number += 1;
        let batch = requests(number, id, who);
        assert_eq!(apply(&mut writer, std::slice::from_ref(&batch)).await, expected, "batch {number}");
        assert_eq!(apply(&mut writer, &[batch]).await, 0, "batch {number} again");
    }
    assert_eq!((total(&mut conn, "a").await, total(&mut conn, "b").await), (12, 3));
    assert_eq!(downloads::forget_installs(&mut conn, 30, 9).await.unwrap(), 0);
    for gone in [4, 4, 0] {
        assert_eq!(downloads::forget_installs(&mut conn, -1, 4).await.unwrap(), gone);
    }
}

/// The bus repeats, groups and reorders as it likes.
#[sqlx::test(migrations = "../migrations")]
async fn any_order_and_any_repeats_give_the_same_sums(pool: PgPool) {
    let (mut conn, mut writer) = (pool.acquire().await.unwrap(), writer(&pool));
    let ids = [artifact(&mut conn, "a").await, artifact(&mut conn, "b").await];
    let mut sums: BTreeMap<usize, u64> = BTreeMap::new();
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

        for group in &groups {
            apply(&mut writer, group).await;
        }
        for (position, name) in ["a", "b"].iter().enumerate() {
            let sum = sums.entry(position).or_default();
            *sum += expected.get(&position).copied().unwrap_or(0);
            assert_eq!(total(&mut conn, name).await.unsigned_abs(), *sum, "case {case}: {groups:?}");
        }
    }
}

/// Two counters that take parts of the same never wait for each other in a circle.
#[sqlx::test(migrations = "../migrations")]
async fn counters_run_side_by_side(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let ids = [artifact(&mut conn, "a").await, artifact(&mut conn, "b").await];
    let tasks: Vec<_> = (0..4_u64)
        .map(|node| {
            let mut writer = writer(&pool);
            tokio::spawn(async move {
                for number in 1..=10 {
                    let own = batch(&format!("n{node}"), 1, number, &[(ids[1], 1), (ids[0], 1)]);
                    let shared = batch("shared", 1, number, &[(ids[0], 1)]);
                    apply(&mut writer, &[shared, own]).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(total(&mut conn, "a").await, 40 + 10);
    assert_eq!(total(&mut conn, "b").await, 40);
}

/// A counter of before 0011 leaves what it takes on the bus: it fails, and not as if the data were at fault.
#[sqlx::test(migrations = "../migrations")]
async fn counters_of_before_cannot_write(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = artifact(&mut conn, "a").await;
    let insert =
        "INSERT INTO downloads_daily (artifact_id, day, client, count) VALUES ($1, '2026-11-20', 'curl', 1)";
    let upsert =
        "ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = downloads_daily.count + excluded.count";
    let failed =
        sqlx::query(sqlx::AssertSqlSafe(format!("{insert} {upsert}"))).bind(id.0).execute(&mut *conn).await;
    let error = failed.unwrap_err();
    assert!(!cratemill_store::database::is_permanent(&error), "{error}");
    // Whoever reads it finds what is counted.
    apply(&mut writer(&pool), &[batch("n", 1, 1, &[(id, 3)])]).await;
    let sum: i64 = sqlx::query_scalar("SELECT sum(count)::bigint FROM downloads_daily")
        .fetch_one(&mut *conn)
        .await
        .unwrap();
    assert_eq!(sum, 3);
}

//! Days become files, and months are written anew, whoever of several dispatchers comes first.

use crate::support::{Store, no_objects};
use cratemill_dispatcher::counts::{self, dump};
use cratemill_stack::s3;
use cratemill_store::{PgPool, downloads::dumps, objects};
use flate2::read::GzDecoder;
use std::{fs, io::Read};
use time::{
    Date, Duration, OffsetDateTime,
    macros::{date, datetime},
};

const NOW: OffsetDateTime = datetime!(2026-11-21 00:11 UTC);
const LONG: Duration = Duration::days(400);

/// As a counter does; what leads to an artifact is tested elsewhere.
async fn count(pool: &PgPool, day: Date, count: i64) {
    sqlx::query("SELECT make_download_month($1)").bind(day).execute(pool).await.unwrap();
    for sql in [
        "INSERT INTO download_counts (artifact_id, day, client, count) SELECT id, $1, 'curl', $2 FROM artifacts
         ON CONFLICT (artifact_id, day, client) DO UPDATE SET count = excluded.count",
        "INSERT INTO download_days (crate_id, day, count) SELECT id, $1, $2 FROM crates
         ON CONFLICT (crate_id, day) DO UPDATE SET count = excluded.count",
    ] {
        sqlx::query(sql).bind(day).bind(count).execute(pool).await.unwrap();
    }
}

async fn artifact(pool: &PgPool) {
    sqlx::query(
        "WITH c AS (INSERT INTO crates (name, canonical) VALUES ('demo', 'demo') RETURNING id),
              v AS (INSERT INTO versions (crate_id, version, sha256) SELECT id, '1.0.0', repeat('0', 64) FROM c RETURNING id),
              b AS (INSERT INTO builders (name) VALUES ('b') RETURNING id),
              k AS (INSERT INTO builder_keys (builder_id, fingerprint, public_key) SELECT id, 'f', 'k' FROM b RETURNING id),
              j AS (INSERT INTO jobs (version_id, kind, target) SELECT id, 'tarball', 't' FROM v RETURNING id)
         INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256,
                                object, manifest, signature, builder_key_id)
         SELECT v.id, 'tarball', 't', 'default', j.id, 1, 0, 'n', 1, repeat('0', 64), 'o', '', '', k.id FROM v, j, k",
    )
    .execute(pool)
    .await
    .unwrap();
}

async fn file(store: &Store, day: Date) -> Option<String> {
    let bytes = match store.objects.get_bytes(&dump::key(day), 1 << 20).await {
        Ok(bytes) => bytes,
        Err(objects::Error::NotFound(_)) => return None,
        Err(error) => panic!("{error}"),
    };
    let mut text = String::new();
    GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    Some(text)
}

fn csv(day: Date, count: i64) -> String {
    format!(
        "day,crate,version,target,kind,features,client,count\n{day},demo,1.0.0,t,tarball,default,curl,{count}\n"
    )
}

#[sqlx::test(migrations = "../migrations")]
async fn a_day_is_a_file_and_anew_when_counts_came_late(pool: PgPool) {
    let store = Store::start().await;
    artifact(&pool).await;
    let (today, yesterday, before, long_ago) =
        (date!(2026 - 11 - 21), date!(2026 - 11 - 20), date!(2026 - 11 - 19), date!(2026 - 05 - 05));
    for (day, number) in [(today, 1), (yesterday, 2), (before, 3), (long_ago, 4)] {
        count(&pool, day, number).await;
    }
    // Just after midnight the day before may not be counted whole.
    counts::round(&pool, &store.objects, datetime!(2026-11-21 00:09 UTC), Duration::days(9)).await.unwrap();
    assert_eq!(file(&store, yesterday).await, None);
    assert_eq!(file(&store, before).await, Some(csv(before, 3)));
    assert_eq!(file(&store, long_ago).await, None, "that is for a dispatcher that has just started");
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(file(&store, yesterday).await, Some(csv(yesterday, 2)));
    assert_eq!(file(&store, long_ago).await, Some(csv(long_ago, 4)));
    assert_eq!(file(&store, today).await, None);

    // What is in a file already is not made again; what changed is.
    store.objects.delete(&dump::key(before)).await.unwrap();
    count(&pool, yesterday, 5).await;
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(file(&store, before).await, None);
    assert_eq!(file(&store, yesterday).await, Some(csv(yesterday, 5)));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_dispatcher_that_dies_at_it_leaves_it_to_another(pool: PgPool) {
    let store = Store::start().await;
    artifact(&pool).await;
    let day = date!(2026 - 11 - 20);
    count(&pool, day, 1).await;
    let mut conn = pool.acquire().await.unwrap();
    assert!(dumps::claim(&mut conn, day).await.unwrap());
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(file(&store, day).await, None, "another one is at it");
    sqlx::query("UPDATE download_dumps SET claimed_at = now() - interval '16 minutes'")
        .execute(&mut *conn)
        .await
        .unwrap();
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(file(&store, day).await, Some(csv(day, 1)));
}

/// Neither the others nor whoever comes next.
#[sqlx::test(migrations = "../migrations")]
async fn a_day_that_cannot_be_stored_is_in_nobodys_way(pool: PgPool) {
    let store = Store::start().await;
    artifact(&pool).await;
    let (good, bad, long_ago) = (date!(2026 - 11 - 20), date!(2026 - 11 - 19), date!(2026 - 09 - 09));
    for day in [good, bad, long_ago] {
        count(&pool, day, 1).await;
    }
    counts::round(&pool, &no_objects(), NOW, LONG).await.unwrap_err();
    let compacted: i64 =
        sqlx::query_scalar("SELECT count(compacted_at) FROM download_months").fetch_one(&pool).await.unwrap();
    assert_eq!(compacted, 1, "that needs no object store");
    // Something else has the name of its file.
    let name = store.data.path().join("s3").join(s3::BUCKET).join(dump::key(bad));
    fs::create_dir_all(name.join("full")).unwrap();
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap_err();
    assert_eq!(file(&store, good).await, Some(csv(good, 1)));
    assert_eq!(file(&store, long_ago).await, Some(csv(long_ago, 1)));
    fs::remove_dir_all(&name).unwrap();
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(file(&store, bad).await, Some(csv(bad, 1)));
}

#[sqlx::test(migrations = "../migrations")]
async fn months_are_compacted_when_nothing_of_them_can_come(pool: PgPool) {
    let store = Store::start().await;
    artifact(&pool).await;
    for day in [date!(2026 - 09 - 09), date!(2026 - 10 - 10), date!(2026 - 11 - 11)] {
        count(&pool, day, 1).await;
    }
    let compacted = async || -> Vec<Date> {
        sqlx::query_scalar("SELECT month FROM download_months WHERE compacted_at IS NOT NULL ORDER BY month")
            .fetch_all(&pool)
            .await
            .unwrap()
    };
    counts::round(&pool, &store.objects, datetime!(2026-11-09 12:00 UTC), LONG).await.unwrap();
    assert_eq!(compacted().await, [date!(2026 - 09 - 01)]);
    counts::round(&pool, &store.objects, NOW, LONG).await.unwrap();
    assert_eq!(compacted().await, [date!(2026 - 09 - 01), date!(2026 - 10 - 01)]);
    let all: i64 =
        sqlx::query_scalar("SELECT sum(count)::bigint FROM downloads_daily").fetch_one(&pool).await.unwrap();
    assert_eq!(all, 3);
}

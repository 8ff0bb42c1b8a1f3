//! Crates and versions: what the registry says, what changes when it says something else, and what counts the changes.

use crate::support::{krate, published, version};
use cratemill_protocol::Sha256Hex;
use cratemill_store::{
    PgPool,
    catalogue::generation,
    crates,
    versions::{self, Change, Published},
};

#[sqlx::test(migrations = "../migrations")]
async fn names_that_a_registry_treats_as_one_are_one(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let first = crates::upsert(&mut tx, &krate("Demo-Tool")).await.unwrap();
    let again = crates::upsert(&mut tx, &krate("demo_tool")).await.unwrap();
    assert_eq!((first.id, &*again.name), (again.id, "Demo-Tool"));
    assert!(again.checked_at.is_none());
    crates::checked(&mut tx, first.id, Some("\"e\""), Some("yesterday")).await.unwrap();
    let found = crates::find(&mut tx, &krate("DEMO-tool")).await.unwrap().unwrap();
    assert_eq!((found.etag.as_deref(), found.last_modified.as_deref()), (Some("\"e\""), Some("yesterday")));
    assert!(found.checked_at.is_some());
    assert!(crates::find(&mut tx, &krate("other")).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../migrations")]
async fn crates_are_searched_and_paged(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    for name in ["bat", "hexyl", "hex-view"] {
        crates::upsert(&mut tx, &krate(name)).await.unwrap();
    }
    for (query, after, expected) in [
        ("", None, vec!["bat", "hex-view", "hexyl"]),
        ("HEX", None, vec!["hex-view", "hexyl"]),
        ("x-v", None, vec!["hex-view"]),
        ("", Some("bat"), vec!["hex-view", "hexyl"]),
        ("%", None, vec![]),
    ] {
        let page = crates::page(&mut tx, query, after, 10).await.unwrap();
        assert_eq!(page.iter().map(|found| &*found.name).collect::<Vec<_>>(), expected, "{query:?}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn merging_tells_what_changed(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let row = crates::upsert(&mut tx, &krate("a")).await.unwrap();
    let changes = versions::merge(&mut tx, row.id, &[published("1.0.0"), published("1.1.0")]).await.unwrap();
    let [(Change::Added(first), _), (Change::Added(second), _)] = changes[..] else { panic!("{changes:?}") };
    assert!(versions::merge(&mut tx, row.id, &[published("1.0.0")]).await.unwrap().is_empty());
    assert!(versions::merge(&mut tx, row.id, &[]).await.unwrap().is_empty());

    let yanked = Published { yanked: true, ..published("1.1.0") };
    let changes =
        versions::merge(&mut tx, row.id, &[published("1.0.0"), yanked, published("2.0.0")]).await.unwrap();
    assert_eq!(changes[0], (Change::Yanked(second), "1.1.0".to_owned()));
    assert!(matches!(&changes[1], (Change::Added(_), version) if version == "2.0.0"));
    let changes = versions::merge(&mut tx, row.id, &[published("1.1.0")]).await.unwrap();
    assert_eq!(changes, [(Change::Unyanked(second), "1.1.0".to_owned())]);

    // The checksum that was seen first stays.
    let forged = Published { sha256: Sha256Hex::of(b"forged"), ..published("1.0.0") };
    assert!(versions::merge(&mut tx, row.id, &[forged]).await.unwrap().is_empty());
    let all = versions::of_crate(&mut tx, row.id).await.unwrap();
    assert_eq!(all.iter().map(|v| v.version.as_str()).collect::<Vec<_>>(), ["1.0.0", "1.1.0", "2.0.0"]);
    assert_eq!((all[0].id, all[0].sha256), (first, Sha256Hex::of(b"1.0.0")));
    let found = versions::find(&mut tx, &krate("A"), "2.0.0").await.unwrap().unwrap();
    assert_eq!((found.id, found.yanked, found.blocked), (all[2].id, false, false));
    assert!(versions::find(&mut tx, &krate("a"), "3.0.0").await.unwrap().is_none());
}

#[sqlx::test(migrations = "../migrations")]
async fn the_generation_changes_with_what_may_be_downloaded(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let (one, two) = (version(&mut conn, "a").await, version(&mut conn, "b").await);
    let mut before = generation(&mut conn).await.unwrap();
    for (change, counts) in [
        ("UPDATE versions SET blocked = true", true),
        ("UPDATE versions SET blocked = true", false),
        ("UPDATE versions SET seen_at = now()", false),
        ("UPDATE versions SET yanked = true WHERE version = '9.9.9'", false),
        ("UPDATE versions SET blocked = false", true),
        ("UPDATE versions SET yanked = true", true),
        ("UPDATE versions SET yanked = false, blocked = false", true),
    ] {
        sqlx::raw_sql(change).execute(&mut *conn).await.unwrap();
        let after = generation(&mut conn).await.unwrap();
        // Once for each transaction, however many versions it changes.
        assert_eq!(after - before, i64::from(counts), "{change}");
        before = after;
    }
    // Two that change different versions do not wait for each other: the number is counted at the commit.
    let block = "UPDATE versions SET blocked = true WHERE id = $1";
    let (mut left, mut right) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    sqlx::query(block).bind(one.0).execute(&mut *left).await.unwrap();
    sqlx::query(block).bind(two.0).execute(&mut *right).await.unwrap();
    right.commit().await.unwrap();
    assert_eq!(generation(&mut conn).await.unwrap(), before + 1);
    left.rollback().await.unwrap();
    assert_eq!(generation(&mut conn).await.unwrap(), before + 1);
}

//! Damage to artifacts: their rows, their manifests and their bytes.

use super::world::World;
use cratemill_store::PgPool;

const ROWS: &[&str] = &[
    "UPDATE artifacts SET size = size + 1 WHERE position = 0",
    "UPDATE artifacts SET sha256 = repeat('0', 64) WHERE position = 1",
    "UPDATE artifacts SET sha256 = repeat('x', 64) WHERE position = 1",
    "UPDATE artifacts SET name = 'other.txt' WHERE position = 1",
    "UPDATE artifacts SET position = 5 WHERE position = 1",
    "UPDATE artifacts SET features = 'no-default'",
    "UPDATE artifacts SET manifest = manifest || ' '",
    "UPDATE artifacts SET manifest = manifest || ' ' WHERE position = 1",
    "UPDATE artifacts SET signature = 'no signature'",
    "UPDATE artifacts SET builder_key_id = 2",
    "UPDATE versions SET sha256 = repeat('0', 64)",
    "UPDATE artifacts SET object = 'elsewhere' WHERE position = 0",
    // A file that the manifest names is not listed.
    "DELETE FROM artifacts WHERE position = 1",
];

#[sqlx::test(migrations = "../migrations")]
async fn rows_that_are_not_what_was_signed_are_found(pool: PgPool) {
    let world = World::live(pool).await;
    for sql in ROWS {
        world.damage("artifacts", sql).await;
        // Not among what a restore brings back.
        let source = crate::support::source().to_string();
        sqlx::query("UPDATE versions SET sha256 = $1").bind(source).execute(&world.pool).await.unwrap();
    }
    assert_eq!(world.found(&[]).await, [""; 0]);
}

/// What a newer build replaced is still listed as that; a success of which no row is left made nothing.
#[sqlx::test(migrations = "../migrations")]
async fn successes_that_have_nothing_to_show_are_found(pool: PgPool) {
    let world = World::at_rest(pool).await;
    let newer = world.build_again().await;
    assert_eq!(world.found(&[]).await, [""; 0], "{}", world.audit(&[]).await);
    // What was downloaded goes with its counts, or these would be of no artifact.
    let counts = "DELETE FROM download_counts; DELETE FROM download_sums; DELETE FROM download_days";
    let of = |which: &str| format!("{counts}; DELETE FROM artifacts WHERE {which}");
    world.damage("jobs", &of("true")).await;
    world.damage("jobs", &of("job_id = GOOD")).await;
    let alone = of(&format!("job_id = {newer}; UPDATE artifacts SET replaced_at = NULL"));
    world.damage("jobs", &alone).await;
}

/// The attempt that made it did not succeed: the job's own check says so too.
#[sqlx::test(migrations = "../migrations")]
async fn artifacts_of_attempts_that_failed_are_found(pool: PgPool) {
    let world = World::at_rest(pool).await;
    sqlx::query("UPDATE finished_jobs SET result = 'lost' WHERE job_id = $1")
        .bind(world.good.0)
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.found(&[]).await, ["jobs", "artifacts"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn bytes_that_are_not_what_was_signed_are_found(pool: PgPool) {
    let world = World::at_rest(pool).await;
    let objects = &world.store.objects;
    let object: String = sqlx::query_scalar("SELECT object FROM artifacts WHERE position = 0")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let put = async |bytes: &'static str| objects.put(&object, bytes.into(), "x/y").await.unwrap();
    for (bytes, words) in
        [("Binaries", "has the SHA-256"), ("binaries.", "has 9 bytes instead of 8"), ("", "has 0 bytes")]
    {
        put(bytes).await;
        let report = world.audit(&["--at-rest"]).await;
        let found: Vec<_> = report.findings().collect();
        assert!(
            found.len() == 1 && found[0].name == "artifacts" && found[0].shown[0].contains(words),
            "{report}"
        );
    }
    objects.delete(&object).await.unwrap();
    let report = world.audit(&["--at-rest"]).await;
    assert!(report.found == 1 && report.to_string().contains("is not in the object store"), "{report}");
    put("binaries").await;
    assert_eq!(world.found(&["--at-rest"]).await, [""; 0]);
}

//! An operator's audit: silent while jobs run and when they have ended, and not when something is wrong.

use super::{failures::broken, scene::Scene};
use cratemill_stack::{
    audit::{audit, findings},
    cluster::Options,
    fixtures::crates,
};

const NOTHING: [&str; 0] = [];

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_finds_what_is_wrong_and_nothing_else() {
    let packages = [
        crates::hello_bin("1.0.0").unwrap(),
        crates::lib_only("0.1.0").unwrap(),
        crates::with_build_script("0.1.0").unwrap(),
        broken(),
    ];
    let options = Options { api: 2, builder: 0, slots: 2, ..Options::default() };
    let mut scene = Scene::start(&packages, options).await;
    for krate in ["hello-bin", "lib-only", "script-bin", "broken-bin"] {
        scene.enqueue(krate, "metadata").await;
    }
    // Not before: a job that the discovery of a crate queues may end before the one asked for is queued, which is a
    // second one then.
    scene.cluster.add_builder(None).await.unwrap();
    let ends = async {
        for (krate, kind, state) in [
            ("lib-only", "metadata", "succeeded"),
            ("hello-bin", "tarball", "succeeded"),
            ("script-bin", "tarball", "succeeded"),
            ("broken-bin", "tarball", "failed"),
        ] {
            // Each from the first event on: they end in any order.
            let end = scene.viewer(&["builds"]).await.job_end(krate, kind).await;
            assert_eq!(end["state"], state, "{krate}");
        }
    };
    let audits = async {
        let mut audits = 0;
        loop {
            let report = audit(&scene.cluster, &[]).await.unwrap();
            assert_eq!(findings(&report), NOTHING, "while jobs run, after {audits} audits");
            audits += 1;
        }
    };
    tokio::select! {
        () = ends => {}
        () = audits => {}
    }

    let report = audit(&scene.cluster, &["--at-rest"]).await.unwrap();
    assert_eq!(findings(&report), NOTHING);
    let looked_at = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap()["looked_at"].as_u64().unwrap()
    };
    assert_eq!((looked_at("jobs"), looked_at("final-events"), looked_at("archived-logs")), (7, 7, 7));
    assert_eq!(looked_at("artifacts"), 6, "four documents and two archives");

    let pool = sqlx::PgPool::connect(&scene.cluster.postgres.url()).await.unwrap();
    sqlx::query("UPDATE artifacts SET sha256 = repeat('0', 64) WHERE kind = 'tarball'")
        .execute(&pool)
        .await
        .unwrap();
    let found = findings(&audit(&scene.cluster, &[]).await.unwrap());
    // In the manifest and in the object store, of each.
    assert_eq!(found.iter().filter(|found| found.starts_with("artifacts: ")).count(), 4, "{found:?}");
    pool.close().await;
    scene.cluster.stop().await.unwrap();
}

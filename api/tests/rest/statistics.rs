//! What was counted, as people see it.

use crate::support::{Node, Servers, TARGET, add_crate, published};
use cratemill_protocol::{
    ArtifactId,
    bus::{ClientClass, DownloadBatch, DownloadCount},
};
use cratemill_store::{
    PgPool, bulk,
    downloads::{Group, Writer},
};
use serde_json::json;

/// 2026-11-19.
const DAY: i32 = 20_776;

async fn count(pool: &PgPool, number: u64, counts: &[(i64, i32, ClientClass, u64)]) {
    let count = |&(artifact, day, client, count): &(i64, i32, ClientClass, u64)| DownloadCount {
        artifact: ArtifactId(artifact),
        day,
        client,
        count,
    };
    let counts = counts.iter().map(count).collect();
    let mut group = Group::default();
    group.push(DownloadBatch { node: "n".into(), epoch: 1, batch: number, counts, installs: vec![] });
    Writer::new(bulk::beside(pool).unwrap()).apply(&mut group).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn counts_are_shown_by_what_is_asked_for(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    published(&node, "demo", "1.0.0", b"one").await;
    published(&node, "demo", "1.1.0", b"two").await;
    published(&node, "other", "0.1.0", b"three").await;
    let counts = [
        (1, DAY, ClientClass::Curl, 1),
        (1, DAY + 1, ClientClass::Binstall, 2),
        (2, DAY + 1, ClientClass::Curl, 4),
        (2, DAY - 400, ClientClass::Curl, 8),
        (3, DAY, ClientClass::Apt, 16),
    ];
    count(&pool, 1, &counts).await;
    let of = async |query: &str| node.get(&format!("/api/v1/crates/Demo/downloads?{query}")).await.json();
    let window = "from=2026-11-18&to=2026-11-20";
    let items = |pairs: &[(&str, i64)]| -> serde_json::Value {
        pairs.iter().map(|(key, count)| json!({"key": key, "count": count})).collect()
    };
    for (by, expected) in [
        ("day", items(&[("2026-11-19", 1), ("2026-11-20", 6)])),
        ("version", items(&[("1.1.0", 4), ("1.0.0", 3)])),
        ("target", items(&[(TARGET, 7)])),
        ("kind", items(&[("tarball", 7)])),
        ("client", items(&[("curl", 5), ("binstall", 2)])),
    ] {
        let answer = of(&format!("{window}&by={by}")).await;
        let rest = json!({
            "crate": "demo", "total": 15, "from": "2026-11-18", "to": "2026-11-20", "count": 7, "by": by,
            "items": expected,
        });
        assert_eq!(answer, rest, "{by}");
    }
    assert_eq!(of("from=2026-11-19&to=2026-11-19").await["items"], items(&[("2026-11-19", 1)]));
    assert_eq!(of("to=2025-12-31").await["count"], 8);

    let top = async |query: &str| node.get(&format!("/api/v1/downloads?{query}")).await.json();
    let both = json!([{"crate": "other", "count": 16}, {"crate": "demo", "count": 7}]);
    assert_eq!(top(window).await["items"], both);
    assert_eq!(top(&format!("{window}&limit=1")).await["items"].as_array().unwrap().len(), 1);
    assert_eq!(top("to=2020-01-01").await["items"], json!([]));

    // Totals are the sums of the days.
    assert_eq!(node.get("/api/v1/crates/demo").await.json()["downloads"], 15);
    let version = node.get("/api/v1/crates/demo/1.1.0").await.json();
    assert_eq!((&version["downloads"], &version["artifacts"][0]["downloads"]), (&json!(12), &json!(12)));
}

#[sqlx::test(migrations = "../migrations")]
async fn windows_that_are_none_are_problems(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false)]).await;
    for (query, field) in [
        ("from=yesterday", Some("from")),
        ("to=2026-13-01", Some("to")),
        ("from=2026-11-02&to=2026-11-01", Some("from")),
        ("from=1970-01-01", Some("from")),
        ("to=%00", Some("to")),
        ("from=%ff", None),
        ("from=2026-11-01&from=2026-11-02", None),
    ] {
        for route in ["/api/v1/crates/demo/downloads", "/api/v1/downloads"] {
            let problem = node.get(&format!("{route}?{query}")).await.problem(400);
            assert!(field.is_none() || problem.as_deref() == field, "{route}?{query}: {problem:?}");
        }
    }
    node.get("/api/v1/crates/demo/downloads?by=moon").await.problem(400);
    node.get("/api/v1/downloads?limit=0").await.problem(400);
    assert_eq!(
        node.get("/api/v1/crates/nope/downloads?by=client").await.problem(404).as_deref(),
        Some("crate")
    );
}

use crate::support::{Node, add_builder, add_crate, block, running_job};
use cratemill_store::PgPool;

#[sqlx::test(migrations = "../migrations")]
async fn lists_come_in_pages(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    for name in ["Delta", "alpha", "bravo-x", "charlie"] {
        add_crate(&pool, name, &[]).await;
    }
    let mut path = "/api/v1/crates?limit=3".to_owned();
    let mut names = Vec::new();
    for expected in [3, 1] {
        let page = node.get(&path).await.json();
        let items = page["items"].as_array().unwrap().clone();
        assert_eq!(items.len(), expected);
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        path = format!("/api/v1/crates?limit=3&cursor={}", page["next"].as_str().unwrap_or_default());
        assert_eq!(page["next"].is_null(), expected == 1);
    }
    assert_eq!(names, ["alpha", "bravo-x", "charlie", "Delta"]);
    for (query, expected) in [("BRAVO_", 1), ("a", 4), ("nothing", 0), ("%25", 0), ("%27%3B--", 0)] {
        let page = node.get(&format!("/api/v1/crates?q={query}")).await.json();
        assert_eq!(page["items"].as_array().unwrap().len(), expected, "{query}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crate_shows_its_versions_and_which_is_latest(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("0.9.0", false), ("0.10.0", false), ("1.0.0", true), ("2.0.0-rc.1", false)])
        .await;
    add_crate(&pool, "gone", &[("1.0.0", true)]).await;
    block(&pool, "demo", "0.9.0").await;
    insta::assert_json_snapshot!(node.get("/api/v1/crates/DEMO").await.json(), {".**.seen_at" => "[time]"});
    let latest = node.get("/api/v1/crates/demo/latest").await.json();
    assert_eq!(latest["version"], "0.10.0");
    assert_eq!(node.get("/api/v1/crates/gone/latest").await.problem(404).as_deref(), Some("version"));
    assert_eq!(node.get("/api/v1/crates/gone").await.json()["latest"], serde_json::Value::Null);
    let counts = node.get("/api/v1/crates/demo/downloads").await.json();
    assert_eq!(
        (&counts["total"], &counts["by"], &counts["items"]),
        (&0.into(), &"day".into(), &[(); 0].as_slice().into())
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn a_version_shows_its_jobs(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false)]).await;
    let (builder, _) = add_builder(&pool, "ada").await;
    running_job(&pool, "demo", "1.0.0", builder).await;
    insta::assert_json_snapshot!(node.get("/api/v1/crates/demo/1.0.0").await.json(), {
        ".**.created_at" => "[time]", ".**.started_at" => "[time]", ".**.run_at" => "[time]",
    });
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_unknown_or_wrong_is_a_problem(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false)]).await;
    for (path, status, field) in [
        ("/api/v1/crates/nope", 404, Some("crate")),
        ("/api/v1/crates/1bad", 404, None),
        ("/api/v1/crates/nope/downloads", 404, Some("crate")),
        ("/api/v1/crates/nope/1.0.0", 404, Some("crate")),
        ("/api/v1/crates/nope/latest", 404, Some("crate")),
        ("/api/v1/crates/demo/9.9.9", 404, Some("version")),
        ("/api/v1/crates/demo/not-a-version", 404, Some("version")),
        ("/api/v1/crates/demo/1.0.0%00", 404, Some("version")),
        ("/api/v1/crates?cursor=x", 400, Some("cursor")),
        ("/api/v1/crates?cursor=", 400, Some("cursor")),
        ("/api/v1/crates?limit=0", 400, Some("limit")),
        ("/api/v1/crates?limit=101", 400, Some("limit")),
        ("/api/v1/crates?limit=-1", 400, None),
        ("/api/v1/crates?limit=9999999999999", 400, None),
        ("/api/v1/crates?limit=1&limit=2", 400, None),
        ("/api/v1/crates?q=%00", 400, Some("q")),
    ] {
        let answer = node.get(path).await;
        let is = answer.problem(status);
        if field.is_some() {
            assert_eq!(is.as_deref(), field, "{path}: {}", answer.text());
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_database_that_is_away_is_503(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    pool.close().await;
    for path in ["/api/v1/crates", "/api/v1/jobs/1", "/api/v1/builders", "/api/v1/jobs/1/log"] {
        let answer = node.get(path).await;
        answer.problem(503);
        assert_eq!(answer.header("retry-after"), "2", "{path}");
    }
}

use crate::support::{ADMIN, Node, Servers, TARGET, add_builder, add_crate, block, finish, running_job};
use cratemill_protocol::{
    FailureClass, JobId,
    bus::{self, NodeMessage, RefreshReply, RefreshRequest},
    subjects,
};
use cratemill_store::{PgPool, queue::End};
use futures_util::StreamExt;
use serde_json::{Value, json};

fn tarball(version: &str) -> Value {
    json!({"crate": "demo", "version": version, "kind": "tarball", "target": TARGET})
}

#[sqlx::test(migrations = "../migrations")]
async fn a_job_is_enqueued_once_and_waits_in_line(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false), ("1.1.0", false)]).await;
    let first = node.operate("POST", "/api/v1/jobs", Some(tarball("1.0.0"))).await;
    assert_eq!((first.status, first.header("location")), (201, "/api/v1/jobs/1"));
    insta::assert_json_snapshot!(first.json(), {".created_at" => "[time]", ".run_at" => "[time]"});
    let again = node.operate("POST", "/api/v1/jobs", Some(tarball("1.0.0"))).await;
    assert_eq!((again.status, again.json()["id"].as_i64()), (200, Some(1)));

    let mut metadata =
        json!({"crate": "DEMO", "version": "latest", "kind": "metadata", "priority": "backfill"});
    let second = node.operate("POST", "/api/v1/jobs", Some(metadata.clone())).await.json();
    assert_eq!((&second["version"], &second["target"]), (&json!("1.1.0"), &json!("any")));
    assert_eq!((&second["queue_position"], &second["priority"]), (&json!(1), &json!("backfill")));
    metadata["run_at"] = json!("2020-01-01T00:00:00Z");
    metadata["priority"] = json!("on_demand");
    let raised = node.operate("POST", "/api/v1/jobs", Some(metadata)).await.json();
    assert_eq!((&raised["id"], &raised["queue_position"]), (&second["id"], &json!(1)));

    for (query, expected) in
        [("", 2), ("?state=queued", 2), ("?state=running", 0), ("?crate=Demo&limit=1", 1), ("?crate=x", 0)]
    {
        let page = node.get(&format!("/api/v1/jobs{query}")).await.json();
        assert_eq!(page["items"].as_array().unwrap().len(), expected, "{query}");
    }
    let page = node.get("/api/v1/jobs?limit=1").await.json();
    let next =
        node.get(&format!("/api/v1/jobs?limit=1&cursor={}", page["next"].as_str().unwrap())).await.json();
    assert_eq!((&page["items"][0]["id"], &next["items"][0]["id"]), (&second["id"], &json!(1)));
    assert_eq!(next["next"], Value::Null);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_field_that_is_wrong_is_named(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false), ("1.1.0", true), ("1.2.0", false)]).await;
    block(&pool, "demo", "1.2.0").await;
    for (field, value, status) in [
        ("crate", json!("../x"), 422),
        ("crate", json!(7), 422),
        ("version", json!("one"), 422),
        ("version", json!("1.0.0\u{0}"), 422),
        ("version", json!("1.1.0"), 409),
        ("version", json!("1.2.0"), 409),
        ("kind", json!("sandwich"), 422),
        ("kind", json!("rustdoc"), 422),
        ("target", json!("any"), 422),
        ("target", json!("wasm32-unknown-unknown"), 422),
        ("target", json!("X/.."), 422),
        ("target", Value::Null, 422),
        ("features", json!("default,-Z"), 422),
        ("priority", json!("urgent"), 422),
        ("run_at", json!("tomorrow"), 422),
        ("run_at", json!("2999-01-01T00:00:00Z"), 422),
    ] {
        let mut body = tarball("1.0.0");
        body[field] = value.clone();
        let answer = node.operate("POST", "/api/v1/jobs", Some(body)).await;
        assert_eq!(answer.problem(status).as_deref(), Some(field), "{value}: {}", answer.text());
    }
    let mut metadata = tarball("1.0.0");
    metadata["kind"] = json!("metadata");
    assert_eq!(
        node.operate("POST", "/api/v1/jobs", Some(metadata)).await.problem(422).as_deref(),
        Some("target")
    );
    let mut unknown = tarball("1.0.0");
    unknown["colour"] = json!("red");
    assert_eq!(
        node.operate("POST", "/api/v1/jobs", Some(unknown)).await.problem(422).as_deref(),
        Some("colour")
    );
    node.operate("POST", "/api/v1/jobs", Some(json!({}))).await.problem(422);
    node.operate("POST", "/api/v1/jobs", Some(json!([]))).await.problem(422);
    // Nobody can be asked about a crate that is not known here.
    let mut other = tarball("1.0.0");
    other["crate"] = json!("other");
    assert_eq!(node.operate("POST", "/api/v1/jobs", Some(other)).await.header("retry-after"), "2");
}

#[sqlx::test(migrations = "../migrations")]
async fn only_operators_operate(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    let routes = [
        ("POST", "/api/v1/jobs"),
        ("POST", "/api/v1/jobs/1/cancel"),
        ("POST", "/api/v1/jobs/1/retry"),
        ("POST", "/api/v1/builders"),
        ("PATCH", "/api/v1/builders/1"),
    ];
    let wrong = [
        String::new(),
        format!("Basic {ADMIN}"),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer {ADMIN}x"),
        format!("Bearer {}", &ADMIN[1..]),
    ];
    for (method, path) in routes {
        for token in &wrong {
            let answer = node.ask(method, path, &[("authorization", token)], Some(json!({}))).await;
            answer.problem(401);
            assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{method} {path}");
        }
        node.ask(method, path, &[], None).await.problem(401);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn jobs_end_and_run_again(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[("1.0.0", false)]).await;
    let job = node.operate("POST", "/api/v1/jobs", Some(tarball("1.0.0"))).await.json();
    node.operate("POST", "/api/v1/jobs/1/retry", None).await.problem(409);
    for _ in 0..2 {
        let cancelled = node.operate("POST", "/api/v1/jobs/1/cancel", None).await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    }
    let again = node.operate("POST", "/api/v1/jobs/1/retry", None).await;
    assert_eq!((again.status, &again.json()["parent"]), (201, &job["id"]));
    assert_eq!(again.header("location"), "/api/v1/jobs/2");
    assert_eq!(node.operate("POST", "/api/v1/jobs/1/retry", None).await.status, 200);
    node.operate("POST", "/api/v1/jobs/2/cancel", None).await;
    block(&pool, "demo", "1.0.0").await;
    node.operate("POST", "/api/v1/jobs/1/retry", None).await.problem(409);
    for path in ["/api/v1/jobs/99/retry", "/api/v1/jobs/99/cancel", "/api/v1/jobs/x/cancel"] {
        node.operate("POST", path, None).await.problem(404);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_running_job_is_cancelled_by_its_builder(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    let admin = servers.bus("admin").await;
    let mut messages = admin.client.subscribe("node.test").await.unwrap();
    admin.settle().await.unwrap();
    add_crate(&pool, "demo", &[("1.0.0", false)]).await;
    let (builder, _) = add_builder(&pool, "ada").await;
    let held = running_job(&pool, "demo", "1.0.0", builder).await;
    let answer = node.operate("POST", "/api/v1/jobs/1/cancel", None).await;
    assert_eq!((answer.status, &answer.json()["state"]), (202, &json!("running")));
    let message: NodeMessage = bus::decode(&messages.next().await.unwrap().payload).unwrap();
    assert_eq!(message, NodeMessage::Cancel { builder, job: JobId(1), attempt: held.attempt, grace_s: 10 });

    finish(&pool, &held, End::Failed { class: FailureClass::Build, message: "it does not compile" }).await;
    node.operate("POST", "/api/v1/jobs/1/cancel", None).await.problem(409);
    insta::assert_json_snapshot!(node.get("/api/v1/jobs/1").await.json(), {
        ".created_at" => "[time]", ".run_at" => "[time]", ".started_at" => "[time]", ".finished_at" => "[time]",
        ".attempts[].assigned_at" => "[time]", ".attempts[].accepted_at" => "[time]",
        ".attempts[].ended_at" => "[time]",
    });
}

#[sqlx::test(migrations = "../migrations")]
async fn the_registry_is_asked_about_what_is_unknown(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    add_crate(&pool, "other", &[]).await;
    let answer = node.operate("POST", "/api/v1/jobs", Some(tarball("1.0.0"))).await;
    answer.problem(503);
    assert!(answer.text().contains("no dispatcher runs"), "{}", answer.text());

    // In the dispatcher's place: the registry has demo 1.0.0, and nothing else.
    let dispatcher = servers.bus("dispatcher").await;
    let group = subjects::DISPATCHERS_GROUP.to_owned();
    let mut requests = dispatcher.client.queue_subscribe(subjects::REGISTRY_REFRESH, group).await.unwrap();
    dispatcher.settle().await.unwrap();
    let registry = pool.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let RefreshRequest { krate } = bus::decode(&request.payload).unwrap();
            let reply = match &*krate {
                "demo" => {
                    add_crate(&registry, "demo", &[("1.0.0", false)]).await;
                    RefreshReply::Fresh
                }
                "away" => RefreshReply::Unavailable { message: "secret inner detail".into() },
                _ => RefreshReply::NotFound,
            };
            let reply = bus::encode(&reply).into();
            dispatcher.client.publish(request.reply.unwrap(), reply).await.unwrap();
        }
    });
    assert_eq!(node.operate("POST", "/api/v1/jobs", Some(tarball("1.0.0"))).await.status, 201);
    let missing = node.operate("POST", "/api/v1/jobs", Some(tarball("3.0.0"))).await;
    assert_eq!(missing.problem(404).as_deref(), Some("version"));
    let mut body = tarball("1.0.0");
    body["crate"] = json!("nope");
    assert_eq!(
        node.operate("POST", "/api/v1/jobs", Some(body.clone())).await.problem(404).as_deref(),
        Some("crate")
    );
    body["crate"] = json!("away");
    let away = node.operate("POST", "/api/v1/jobs", Some(body)).await;
    away.problem(503);
    assert!(!away.text().contains("inner detail"));
}

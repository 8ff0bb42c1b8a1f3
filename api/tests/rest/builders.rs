use crate::support::{Node, Servers, TARGET, add_crate};
use cratemill_protocol::{
    BuilderId,
    bus::{self, NodeMessage},
};
use cratemill_store::PgPool;
use futures_util::StreamExt;
use serde_json::json;
use ssh_key::{Algorithm, PrivateKey, rand_core::OsRng};

fn key() -> String {
    let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    key.public_key().to_openssh().unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn builders_are_registered_and_changed(pool: PgPool) {
    let servers = Servers::start().await;
    let node = servers.node(pool.clone(), &[]).await;
    let admin = servers.bus("admin").await;
    let mut messages = admin.client.subscribe("node.all").await.unwrap();
    admin.settle().await.unwrap();
    add_crate(&pool, "demo", &[]).await;
    let body = json!({"name": "ada", "public_key": format!("{} ada@home", key()), "targets": [TARGET]});
    let made = node.operate("POST", "/api/v1/builders", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    insta::assert_json_snapshot!(made.json(), {".public_key" => "[key]", ".fingerprints[]" => "[fingerprint]"});
    let kept = made.json()["public_key"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("ssh-ed25519 AAAA") && !kept.contains("ada@home"), "{kept}");
    assert_eq!(node.get("/api/v1/builders").await.json()["items"], json!([made.json()]));

    let drained = node.operate("PATCH", "/api/v1/builders/1", Some(json!({"drain": true}))).await.json();
    assert_eq!((&drained["drain"], &drained["enabled"]), (&json!(true), &json!(true)));
    let disabled = node.operate("PATCH", "/api/v1/builders/1", Some(json!({"enabled": false}))).await.json();
    assert_eq!((&disabled["drain"], &disabled["enabled"]), (&json!(true), &json!(false)));
    let both = json!({"enabled": true, "drain": false});
    let back = node.operate("PATCH", "/api/v1/builders/1", Some(both)).await.json();
    assert_eq!((&back["drain"], &back["enabled"]), (&json!(false), &json!(true)));
    for expected in
        [NodeMessage::Drain { builder: BuilderId(1) }, NodeMessage::Disabled { builder: BuilderId(1) }]
    {
        let message: NodeMessage = bus::decode(&messages.next().await.unwrap().payload).unwrap();
        assert_eq!(message, expected);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_wrong_with_a_builder_is_named(pool: PgPool) {
    let node = Node::alone(pool.clone()).await;
    add_crate(&pool, "demo", &[]).await;
    let good = json!({"name": "ada", "public_key": key(), "targets": [TARGET]});
    assert_eq!(node.operate("POST", "/api/v1/builders", Some(good.clone())).await.status, 201);
    let fresh = json!({"name": "bob", "public_key": key(), "targets": [TARGET]});
    for (field, value, status) in [
        ("name", json!("ada"), 409),
        ("public_key", good["public_key"].clone(), 409),
        ("name", json!(""), 422),
        ("name", json!("a b"), 422),
        ("name", json!("x".repeat(65)), 422),
        ("public_key", json!("ssh-ed25519 nonsense"), 422),
        ("public_key", json!(""), 422),
        ("public_key", json!("x".repeat(20_000)), 422),
        ("targets", json!([]), 422),
        ("targets", json!(["any"]), 422),
        ("targets", json!(["wasm32-unknown-unknown"]), 422),
        ("targets[0]", json!(["../x"]), 422),
        ("targets", json!(vec![TARGET; 33]), 422),
    ] {
        let mut body = fresh.clone();
        body[field.trim_end_matches("[0]")] = value.clone();
        let answer = node.operate("POST", "/api/v1/builders", Some(body)).await;
        assert_eq!(answer.problem(status).as_deref(), Some(field), "{value}: {}", answer.text());
    }
    // What was refused left nothing behind.
    assert_eq!(node.get("/api/v1/builders").await.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(node.operate("POST", "/api/v1/builders", Some(fresh)).await.status, 201);

    node.operate("PATCH", "/api/v1/builders/1", Some(json!({}))).await.problem(422);
    node.operate("PATCH", "/api/v1/builders/99", Some(json!({"drain": true}))).await.problem(404);
    node.operate("PATCH", "/api/v1/builders/1", Some(json!({"drain": "yes"}))).await.problem(422);
    node.get("/api/v1/builders?cursor=x").await.problem(400);
}

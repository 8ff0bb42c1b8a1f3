//! Builders, their keys and targets.

use crate::support::{ARM, LINUX, builder, connected, running, target};
use cratemill_protocol::BuilderId;
use cratemill_store::{
    PgPool,
    builders::{self, RegisterError},
    targets,
};

#[sqlx::test(migrations = "../migrations")]
async fn a_builder_is_registered_once(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = builder(&mut conn, "b", LINUX).await;
    let linux = [target(LINUX)];
    let again = builders::register(&mut conn, "b", "SHA256:x", "ssh-ed25519 x", &linux).await;
    assert!(matches!(again, Err(RegisterError::Name)));
    let mut tx = pool.begin().await.unwrap();
    let again = builders::register(&mut tx, "c", "SHA256:b", "ssh-ed25519 b", &linux).await;
    assert!(matches!(again, Err(RegisterError::Key)));
    tx.rollback().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let other = builders::register(&mut tx, "c", "SHA256:c", "ssh-ed25519 c", &[target(ARM)]).await;
    assert!(matches!(other, Err(RegisterError::Target(name)) if name == ARM));
    tx.rollback().await.unwrap();

    let login = builders::login(&mut conn, "SHA256:b").await.unwrap().unwrap();
    assert_eq!((login.builder, login.enabled, login.drain), (id, true, false));
    assert_eq!((login.public_key.as_str(), login.targets), ("ssh-ed25519 b", vec![LINUX.to_owned()]));
    assert!(builders::login(&mut conn, "SHA256:none").await.unwrap().is_none());
    let keys = builders::keys(&mut conn, id).await.unwrap();
    assert_eq!(keys, [(login.key_id, "ssh-ed25519 b".to_owned())]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_disabled_builder_cannot_log_in(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let id = builder(&mut tx, "b", LINUX).await;
    assert!(builders::update(&mut tx, id, Some(false), None).await.unwrap());
    assert!(!builders::login(&mut tx, "SHA256:b").await.unwrap().unwrap().enabled);
    assert!(!builders::update(&mut tx, BuilderId(404), Some(false), None).await.unwrap());
}

#[sqlx::test(migrations = "../migrations")]
async fn builders_are_listed(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    let idle = connected(&mut tx, "idle", LINUX).await;
    let away = builder(&mut tx, "away", LINUX).await;
    let busy = running(&mut tx, "busy").await.builder;
    let page = builders::page(&mut tx, 0, 10).await.unwrap();
    let seen: Vec<_> = page.iter().map(|b| (b.id, b.connected, b.running)).collect();
    assert_eq!(seen, [(idle, true, 0), (away, false, 0), (busy, true, 1)]);
    assert_eq!(builders::page(&mut tx, idle.0, 1).await.unwrap()[0].id, away);
    let found = builders::find(&mut tx, idle).await.unwrap().unwrap();
    assert_eq!((found.fingerprints, found.targets), (vec!["SHA256:idle".to_owned()], vec![LINUX.to_owned()]));
    assert!(found.last_seen_at.is_some());
    assert!(builders::find(&mut tx, BuilderId(404)).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../migrations")]
async fn targets_are_added_once(pool: PgPool) {
    let mut tx = pool.begin().await.unwrap();
    targets::ensure(&mut tx, &[target(LINUX), target(ARM), target(LINUX)]).await.unwrap();
    targets::ensure(&mut tx, &[target(LINUX)]).await.unwrap();
    targets::ensure(&mut tx, &[]).await.unwrap();
    assert_eq!(targets::enabled(&mut tx).await.unwrap(), [target(ARM), target(LINUX)]);
    assert!(targets::is_enabled(&mut tx, &target(ARM)).await.unwrap());
    assert!(!targets::is_enabled(&mut tx, &target("riscv64gc-unknown-linux-gnu")).await.unwrap());
}

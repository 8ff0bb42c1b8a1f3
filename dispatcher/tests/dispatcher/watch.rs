//! The watch: which crates are looked at, and by whom.

use crate::peer::{Peer, line};
use cratemill_dispatcher::{config, registry::watch};
use cratemill_protocol::CrateName;
use cratemill_store::{
    PgPool, crates,
    database::{self, Alone, Channel, listen, try_lock},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

fn settings(peer: &Peer, feed: Option<&str>) -> config::Registry {
    config::Registry {
        index: format!("sparse+{}", peer.url("")).parse().unwrap(),
        registry_token: None,
        crates: vec![CrateName::parse("demo").unwrap(), CrateName::parse("gone").unwrap()],
        feed: feed.map(|path| peer.url(path).parse().unwrap()),
        watch_interval_s: 1,
    }
}

/// Waits until the crate is there; each refresh that finds something sends a notification.
async fn appears(pool: &PgPool, name: &str) {
    let mut listener = listen(pool, &[Channel::Outbox]).await.unwrap();
    let name = CrateName::parse(name).unwrap();
    let found = async {
        while crates::find(&mut pool.acquire().await.unwrap(), &name).await.unwrap().is_none() {
            listener.recv().await.unwrap();
        }
    };
    timeout(PATIENCE, found).await.expect("the watch looks at it");
}

#[sqlx::test(migrations = "../migrations")]
async fn listed_and_fed_crates_are_watched(pool: PgPool) {
    let peer = Peer::start().await;
    peer.body("de/mo/demo", line("demo", "1.0.0", false, ""));
    peer.body("ne/ws/news", line("news", "1.0.0", false, ""));
    peer.body("la/te/late", line("late", "1.0.0", false, ""));
    peer.body("feed", "news\n");
    let shutdown = CancellationToken::new();
    let registry = Arc::new(peer.registry(None));
    let watch = watch::run(pool.clone(), registry, settings(&peer, Some("feed")), shutdown.clone());
    let watch = tokio::spawn(watch);
    appears(&pool, "demo").await;
    appears(&pool, "news").await;
    peer.body("feed", "<rss><link>https://r.example/crates/late</link></rss>");
    appears(&pool, "late").await;
    // One that the registry does not have keeps nobody else from being looked at.
    assert_eq!(peer.answers("go/ne/gone").first(), Some(&404));

    let mut other = pool.begin().await.unwrap();
    assert!(!try_lock(&mut other, Alone::RegistryWatch).await.unwrap(), "one watches");
    shutdown.cancel();
    timeout(PATIENCE, watch).await.unwrap().unwrap().unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn one_that_is_not_elected_leaves_the_registry_alone(pool: PgPool) {
    let peer = Peer::start().await;
    peer.body("de/mo/demo", line("demo", "1.0.0", false, ""));
    let mut elected = pool.begin().await.unwrap();
    assert!(try_lock(&mut elected, Alone::RegistryWatch).await.unwrap());
    let shutdown = CancellationToken::new();
    let registry = Arc::new(peer.registry(None));
    let watch = tokio::spawn(watch::run(pool.clone(), registry, settings(&peer, None), shutdown.clone()));
    // The other's connection dies: this one takes over, and not before.
    database::ping(&mut elected).await.unwrap();
    assert!(peer.answers("de/mo/demo").is_empty());
    drop(elected);
    appears(&pool, "demo").await;
    shutdown.cancel();
    timeout(PATIENCE, watch).await.unwrap().unwrap().unwrap();
}

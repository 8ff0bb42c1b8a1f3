//! What an idle connection costs its node in user space, and after messages to all.

use super::{
    farm::Farm,
    people::{Inserter, Watcher, log_in},
    queue::{connect, issued, publication, settle, subscribe},
};
use crate::{
    live::usage,
    statistics::{count, hundredths},
};
use anyhow::{Context, Result};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

const MESSAGES: usize = 50;
const ARRIVE: Duration = Duration::from_mins(2);
/// The first of them are there when the measuring begins: what a node needs once is nobody's.
const FIRST_PART: usize = 4;

struct Each {
    idle: f64,
    after_traffic: f64,
}

pub(super) async fn measure(connections: usize) -> Result<Value> {
    let mut fields = json!({ "memory_connections": connections });
    for (name, cbor) in [("event_api", false), ("cbor", true)] {
        let each = one(connections, cbor).await?;
        println!(
            "  {name}: {:.1} bytes for an idle connection, {:.1} after {MESSAGES} messages to all",
            each.idle, each.after_traffic
        );
        fields[format!("{name}_bytes_per_connection")] = hundredths(each.idle).into();
        fields[format!("{name}_bytes_after_traffic")] = hundredths(each.after_traffic).into();
    }
    Ok(fields)
}

async fn one(connections: usize, cbor: bool) -> Result<Each> {
    let farm = Farm::start(1).await?;
    let address = farm.address(0)?;
    let subscription: u128 = rand::random();
    let came = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    let mut with_few = 0.0;
    for number in 0..connections {
        if number == connections / FIRST_PART {
            with_few = usage::settled_pss(&farm.pids()).await?;
        }
        let came = Arc::clone(&came);
        if cbor {
            let mut socket = connect(address).await?;
            socket.send(Message::binary(subscribe(subscription))).await?;
            settle(&mut socket).await?;
            clients.spawn(async move {
                while let Some(Ok(message)) = socket.next().await {
                    if matches!(&message, Message::Binary(bytes) if issued(bytes).is_some()) {
                        came.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        } else {
            let mut watcher = Watcher::open(address).await?;
            clients.spawn(async move {
                let count = |_: &[u8]| {
                    came.fetch_add(1, Ordering::Relaxed);
                };
                while watcher.read(count).await.is_ok() {}
            });
        }
    }
    let with_all = usage::settled_pss(&farm.pids()).await?;
    if cbor {
        let mut publisher = connect(address).await?;
        for sent in 1..=MESSAGES {
            publisher.send(Message::binary(publication(subscription))).await?;
            arrive(&came, sent * connections).await?;
        }
    } else {
        let mut inserter = Inserter::connect(address, &log_in(address).await?).await?;
        for sent in 1..=MESSAGES {
            inserter.insert("x", 0).await?;
            arrive(&came, sent * connections).await?;
        }
    }
    let after = usage::settled_pss(&farm.pids()).await?;
    drop(clients);
    farm.stop().await?;
    let idle = (with_all - with_few) / count(connections - connections / FIRST_PART);
    Ok(Each { idle, after_traffic: idle + (after - with_all) / count(connections) })
}

async fn arrive(came: &AtomicUsize, wanted: usize) -> Result<()> {
    let all = async {
        while came.load(Ordering::Relaxed) < wanted {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(ARRIVE, all).await.context("a message did not arrive")
}

//! Does to a cluster what a schedule says, until it is stopped: then everything is started again.

use super::schedule::{Fault, Thing, Victim, faults};
use anyhow::{Context, Result};
use cratemill_protocol::subjects;
use cratemill_stack::{Cluster, nats::Nats, postgres::Postgres, services::Service};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// For a server of the bus that was killed before to have everything again, on a busy machine.
const CATCH_UP: Duration = Duration::from_mins(2);

/// How often each kind was killed, and how often a service had ended by itself.
#[derive(Debug, Default)]
pub(super) struct Kills {
    api: AtomicU64,
    counter: AtomicU64,
    leader: AtomicU64,
    follower: AtomicU64,
    postgres: AtomicU64,
    died: AtomicU64,
}

impl Kills {
    pub(super) fn json(&self) -> Value {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({
            "api": of(&self.api),
            "counter": of(&self.counter),
            "nats_leader": of(&self.leader),
            "nats_other": of(&self.follower),
            "postgres": of(&self.postgres),
            "died_alone": of(&self.died),
        })
    }
}

pub(super) struct Player {
    pub(super) seed: u64,
    pub(super) stop: CancellationToken,
    pub(super) kills: Kills,
    started: Instant,
}

impl Player {
    pub(super) fn new(seed: u64) -> Self {
        let (stop, kills) = (CancellationToken::new(), Kills::default());
        Self { seed, stop, kills, started: Instant::now() }
    }

    /// Until it is stopped. What was killed was started again then, and need not be ready yet.
    pub(super) async fn play(&self, cluster: &mut Cluster) -> Result<()> {
        let Cluster { api, counters, nats, postgres, .. } = cluster;
        let api = (0..).zip(api).map(|(number, node)| (Thing::Api(number), node, &self.kills.api));
        let counters = (0..).zip(counters);
        let counters = counters.map(|(number, it)| (Thing::Counter(number), it, &self.kills.counter));
        let services = api.chain(counters).map(|(thing, service, kills)| self.service(thing, service, kills));
        tokio::try_join!(try_join_all(services), self.nats(nats), self.postgres(postgres)).map(drop)
    }

    async fn service(&self, thing: Thing, service: &mut Service, kills: &AtomicU64) -> Result<()> {
        for fault in faults(self.seed, thing, 0) {
            if !self.wait(fault.after).await {
                break;
            }
            let alive = service.process().is_some_and(|process| matches!(process.exited(), Ok(None)));
            if !alive {
                self.say(format_args!("{} has ended by itself", service.name()));
                self.kills.died.fetch_add(1, Ordering::Relaxed);
            }
            self.now(service.name(), fault);
            service.kill9().await?;
            kills.fetch_add(1, Ordering::Relaxed);
            self.wait(fault.away).await;
            // What it depends on may be away.
            service.spawn().await?;
        }
        Ok(())
    }

    async fn postgres(&self, postgres: &mut Postgres) -> Result<()> {
        for fault in faults(self.seed, Thing::Postgres, 0) {
            if !self.wait(fault.after).await {
                break;
            }
            self.now("postgres", fault);
            postgres.kill9().await?;
            self.kills.postgres.fetch_add(1, Ordering::Relaxed);
            self.wait(fault.away).await;
            postgres.restart().await?;
        }
        Ok(())
    }

    /// Never two at once: the next one dies when the one before has caught up.
    async fn nats(&self, nats: &mut Nats) -> Result<()> {
        for fault in faults(self.seed, Thing::Nats, nats.servers.len()) {
            if !self.wait(fault.after).await {
                break;
            }
            let leader = tokio::select! {
                leader = timeout(CATCH_UP, leader_of_whole(nats)) => leader.context("the bus has no leader")??,
                () = self.stop.cancelled() => break,
            };
            let number = match fault.victim {
                Victim::Leader => leader,
                Victim::Number(number) => number,
            };
            let (name, kills) = if number == leader {
                ("the leader ", &self.kills.leader)
            } else {
                ("", &self.kills.follower)
            };
            let server = &mut nats.servers[number];
            self.now(&format!("{name}{}", server.name()), fault);
            server.kill9().await?;
            kills.fetch_add(1, Ordering::Relaxed);
            self.wait(fault.away).await;
            server.restart().await?;
        }
        Ok(())
    }

    /// False if it is stopped before.
    async fn wait(&self, time: Duration) -> bool {
        tokio::select! {
            () = sleep(time) => true,
            () = self.stop.cancelled() => false,
        }
    }

    fn now(&self, name: &str, fault: Fault) {
        self.say(format_args!("kill -9 {name}, away for {:.1} s", fault.away.as_secs_f32()));
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        println!("{:7.1} s: {what}", self.started.elapsed().as_secs_f32());
    }
}

/// Who leads the stream of downloads, once every server has all of it.
async fn leader_of_whole(nats: &Nats) -> Result<usize> {
    loop {
        nats.wait_for_replicas(CATCH_UP).await?;
        // Another one may be elected just now.
        if let Ok(leader) = nats.leader(subjects::DOWNLOADS_STREAM).await {
            return Ok(leader);
        }
    }
}

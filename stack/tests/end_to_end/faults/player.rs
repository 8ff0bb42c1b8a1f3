//! Does to a cluster what a schedule says.

use super::schedule::{Fault, Kind};
use anyhow::{Context, Result};
use cratemill_protocol::subjects;
use cratemill_stack::{cluster::Cluster, nats, network::Network, services::Service};
use futures_util::future::try_join_all;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep_until};

/// For a NATS server that was killed before to have everything again, on a busy machine.
const CATCH_UP: Duration = Duration::from_mins(2);

/// Until the last fault is over: everything was started again, and need not be ready yet.
pub(super) async fn play(cluster: &mut Cluster, network: Option<&Network>, faults: &[Fault]) {
    let mut player = Player { cluster, network, servers: BTreeMap::new() };
    let started = Instant::now();
    for Step { at, fault: number, ends } in steps(faults) {
        sleep_until(started + at).await;
        let fault = &faults[number];
        let passed = started.elapsed().as_secs_f32();
        eprintln!("{passed:6.1} s: {} {fault}", if ends { "end of" } else { "now" });
        let result = if ends { player.end(number, fault).await } else { player.begin(number, fault).await };
        result.with_context(|| fault.to_string()).unwrap();
    }
}

/// In this order a fault begins before it ends, and ends before the next one of the same thing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    at: Duration,
    fault: usize,
    ends: bool,
}

fn steps(faults: &[Fault]) -> Vec<Step> {
    let both = |(number, fault): (usize, &Fault)| {
        [(fault.at, false), (fault.end(), true)].map(|(at, ends)| Step { at, fault: number, ends })
    };
    let mut steps: Vec<_> = faults.iter().enumerate().flat_map(both).collect();
    steps.sort_unstable();
    steps
}

struct Player<'a> {
    cluster: &'a mut Cluster,
    network: Option<&'a Network>,
    /// Which NATS server a fault has hit.
    servers: BTreeMap<usize, usize>,
}

impl Player<'_> {
    async fn begin(&mut self, number: usize, fault: &Fault) -> Result<()> {
        if let Some(service) = self.service(fault) {
            return service.kill9().await;
        }
        match fault.kind {
            Kind::LoadBalancer => self.cluster.haproxy.kill9().await,
            Kind::Postgres => self.cluster.postgres.kill9().await,
            Kind::PostgresAway => self.cluster.postgres.stop().await,
            Kind::ObjectStoreAway => {
                self.cluster.s3.stop().await;
                Ok(())
            }
            Kind::BusAway => self.cluster.nats.kill9().await,
            Kind::NetworkCut => self.network()?.cut().await,
            _ => {
                let server = self.nats_server(fault).await?;
                self.servers.insert(number, server);
                self.cluster.nats.servers[server].kill9().await
            }
        }
    }

    async fn end(&mut self, number: usize, fault: &Fault) -> Result<()> {
        if let Some(service) = self.service(fault) {
            // What it depends on may be away.
            return service.spawn().await;
        }
        match fault.kind {
            Kind::LoadBalancer => self.cluster.haproxy.restart().await,
            Kind::Postgres | Kind::PostgresAway => self.cluster.postgres.restart().await,
            Kind::ObjectStoreAway => self.cluster.s3.restart().await,
            Kind::BusAway => {
                // Who leads them they find out while other things break.
                let servers = self.cluster.nats.servers.iter_mut();
                try_join_all(servers.map(nats::Server::restart)).await.map(drop)
            }
            Kind::NetworkCut => self.network()?.heal().await,
            _ => {
                let server = self.servers.remove(&number).context("no server was killed")?;
                self.cluster.nats.servers[server].restart().await
            }
        }
    }

    fn service(&mut self, fault: &Fault) -> Option<&mut Service> {
        let services = match fault.kind {
            Kind::Api => &mut self.cluster.api,
            Kind::Live => &mut self.cluster.live,
            Kind::Dispatcher => &mut self.cluster.dispatchers,
            Kind::Counter => &mut self.cluster.counters,
            Kind::Builder => &mut self.cluster.builders,
            _ => return None,
        };
        services.get_mut(fault.number)
    }

    fn network(&self) -> Result<&Network> {
        self.network.context("no network can be cut")
    }

    /// One at a time: the next one dies when the one before has caught up.
    async fn nats_server(&self, fault: &Fault) -> Result<usize> {
        let nats = &self.cluster.nats;
        nats.wait_for_replicas(CATCH_UP).await?;
        match fault.kind {
            Kind::WorkLeader => nats.leader(subjects::BUILD_STREAM).await,
            Kind::LogsLeader => nats.leader(subjects::LOGS_STREAM).await,
            _ => Ok(fault.number),
        }
    }
}

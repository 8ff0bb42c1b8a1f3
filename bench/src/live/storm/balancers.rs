//! Load balancers before the same nodes. One has open files for fewer than 10,000 viewers, since each is two for it.

use anyhow::Result;
use cratemill_stack::{
    data_dir::DataDir,
    haproxy::{Haproxy, Nodes},
    process::Process,
};
use futures_util::future::try_join_all;
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

/// For 4,500 viewers each, and as many that come back while the kernel still has their old connections.
const COUNT: usize = 4;
const UP_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Balancers(Vec<(Haproxy, DataDir)>);

impl Balancers {
    /// On the configuration that is shipped, for live nodes only.
    pub(super) async fn start(nodes: &[SocketAddrV4]) -> Result<Self> {
        let live = nodes.iter().map(|node| (*node).into()).collect();
        let nodes = Nodes { api: Vec::new(), live };
        let mut all = Vec::new();
        for _ in 0..COUNT {
            let data_dir = DataDir::temporary()?;
            all.push((Haproxy::start(&data_dir, Ipv4Addr::LOCALHOST, &nodes).await?, data_dir));
        }
        Ok(Self(all))
    }

    pub(super) fn addresses(&self) -> Result<Vec<SocketAddrV4>> {
        let address =
            |(haproxy, _): &(Haproxy, DataDir)| Ok(haproxy.url().trim_start_matches("http://").parse()?);
        self.0.iter().map(address).collect()
    }

    /// Waits until all of them see all nodes.
    pub(super) async fn wait_for_nodes(&self) -> Result<()> {
        try_join_all(self.0.iter().map(|(haproxy, _)| haproxy.wait_for_nodes(UP_TIMEOUT))).await.map(drop)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.0.iter().filter_map(|(haproxy, _)| haproxy.process()).map(Process::pid).collect()
    }

    pub(super) async fn stop(self) -> Result<()> {
        for (mut haproxy, _) in self.0 {
            // Whoever was behind it has gone: there is nothing to be graceful about.
            haproxy.kill9().await?;
        }
        Ok(())
    }
}

//! The nodes of either side: ours on their bus, and nginx with nchan on a Redis that carries events from one to the other.

use super::Side;
use crate::live::{
    publisher::Publisher,
    servers::{
        nchan::{self, Nchan},
        ours::{self, Ours},
        v4,
    },
    usage,
};
use anyhow::{Context, Result};
use cratemill_stack::{data_dir::DataDir, process::Process, programs, redis::Redis};
use std::{net::SocketAddrV4, time::Duration};

pub(super) enum Farm {
    Ours(Box<Ours>),
    Nchan { nodes: Vec<Nchan>, redis: Box<Redis>, _data_dir: DataDir },
}

impl Farm {
    /// With so many nodes, none of which runs.
    pub(super) async fn prepare(side: Side, nodes: usize) -> Result<Self> {
        if side == Side::Ours {
            return Ok(Self::Ours(Box::new(Ours::prepare(nodes).await?)));
        }
        programs::install_missing(&[programs::REDIS_SERVER], |text| println!("{text}"))?;
        let data_dir = DataDir::temporary()?;
        let redis = Box::new(Redis::start(&data_dir).await?);
        let nodes = (0..nodes).map(|_| Nchan::prepare(Some(&redis.url()))).collect::<Result<_>>()?;
        Ok(Self::Nchan { nodes, redis, _data_dir: data_dir })
    }

    pub(super) async fn start_nodes(&mut self, positions: &[usize]) -> Result<()> {
        match self {
            Self::Ours(ours) => ours.start_nodes(positions).await?,
            Self::Nchan { nodes, .. } => {
                for position in positions {
                    nodes[*position].run().await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn kill9(&mut self, position: usize) -> Result<()> {
        match self {
            Self::Ours(ours) => ours.nodes[position].kill9().await,
            Self::Nchan { nodes, .. } => nodes[position].kill9().await,
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<SocketAddrV4>> {
        match self {
            Self::Ours(ours) => ours.addresses(),
            Self::Nchan { nodes, .. } => nodes.iter().map(|node| v4(node.address())).collect(),
        }
    }

    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Ours(_) => ours::QUEUE_PATH,
            Self::Nchan { .. } => nchan::FOLLOW_PATH,
        }
    }

    /// Of the nodes that run.
    pub(super) fn pids(&self) -> Vec<u32> {
        match self {
            Self::Ours(ours) => ours.pids(),
            Self::Nchan { nodes, .. } => nodes.iter().filter_map(Nchan::pid).collect(),
        }
    }

    pub(super) fn bus_cpu(&self) -> Result<Duration> {
        match self {
            Self::Ours(ours) => ours.bus_cpu(),
            Self::Nchan { redis, .. } => {
                usage::cpu(&redis.process().map(Process::pid).into_iter().collect::<Vec<_>>())
            }
        }
    }

    /// Through what outlives the storm: the bus, or the last of the nodes.
    pub(super) async fn publisher(&self) -> Result<Publisher> {
        match self {
            Self::Ours(ours) => Ok(ours.publisher(1)),
            Self::Nchan { nodes, .. } => {
                let last = nodes.last().context("there are no nodes")?;
                Publisher::http(last.address(), nchan::PUBLISH_PATH).await
            }
        }
    }

    pub(super) async fn stop(self) -> Result<()> {
        match self {
            Self::Ours(ours) => ours.stop().await,
            Self::Nchan { mut nodes, mut redis, .. } => {
                for node in &mut nodes {
                    node.stop().await?;
                }
                redis.stop().await
            }
        }
    }
}

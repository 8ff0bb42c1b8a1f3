//! The servers that are measured: each of them processes of its own, all with the same text for the same event.

pub(crate) mod axum;
mod local;
pub(super) mod nchan;
pub(super) mod ours;
pub(crate) mod raw;

use super::{publisher::Publisher, usage};
use anyhow::{Result, bail};
use local::Local;
use std::{
    fmt,
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    Nchan,
    Axum,
    /// No server, but the limit of what one can do with a write for each event and viewer.
    Raw,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Nchan => "nchan",
            Self::Axum => "axum",
            Self::Raw => "raw",
        })
    }
}

/// A running server with one node, for one topic.
pub(super) enum Server {
    Ours(Box<ours::Ours>),
    Nchan(nchan::Nchan),
    Axum(Local),
    Raw(Local),
}

impl Server {
    pub(super) async fn start(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Ours => Self::Ours(Box::new(ours::Ours::start(1).await?)),
            Kind::Nchan => Self::Nchan(nchan::Nchan::start().await?),
            Kind::Axum => Self::Axum(Local::start("axum", "live-axum").await?),
            Kind::Raw => Self::Raw(Local::start("raw", "live-raw").await?),
        })
    }

    pub(super) fn address(&self) -> Result<SocketAddrV4> {
        match self {
            Self::Ours(ours) => Ok(ours.addresses()?[0]),
            Self::Nchan(nchan) => v4(nchan.address()),
            Self::Axum(local) | Self::Raw(local) => v4(local.address()),
        }
    }

    /// Where a viewer follows.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Ours(_) => ours::QUEUE_PATH,
            Self::Nchan(_) => nchan::FOLLOW_PATH,
            Self::Axum(_) => axum::FOLLOW_PATH,
            Self::Raw(_) => raw::FOLLOW_PATH,
        }
    }

    pub(super) async fn publisher(&self) -> Result<Publisher> {
        match self {
            Self::Ours(ours) => Ok(ours.publisher(1)),
            Self::Nchan(nchan) => Publisher::http(nchan.address(), nchan::PUBLISH_PATH).await,
            Self::Axum(local) => Publisher::http(local.address(), axum::PUBLISH_PATH).await,
            Self::Raw(local) => Publisher::http(local.address(), raw::PUBLISH_PATH).await,
        }
    }

    /// Of user space, once it no longer changes.
    pub(super) async fn pss(&self) -> Result<f64> {
        usage::settled_pss(&self.pids()).await
    }

    pub(super) fn cpu(&self) -> Result<Duration> {
        usage::cpu(&self.pids())
    }

    /// Of what carries events to the server and is not counted as part of it.
    pub(super) fn bus_cpu(&self) -> Result<Duration> {
        match self {
            Self::Ours(ours) => ours.bus_cpu(),
            Self::Nchan(_) | Self::Axum(_) | Self::Raw(_) => Ok(Duration::ZERO),
        }
    }

    pub(super) async fn stop(self) -> Result<()> {
        match self {
            Self::Ours(ours) => ours.stop().await,
            Self::Nchan(mut nchan) => nchan.stop().await,
            Self::Axum(local) | Self::Raw(local) => local.stop().await,
        }
    }

    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Ours(ours) => ours.pids(),
            Self::Nchan(nchan) => nchan.pid().into_iter().collect(),
            Self::Axum(local) | Self::Raw(local) => vec![local.pid()],
        }
    }
}

/// All of loopback here is IPv4.
pub(super) fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} is not of IPv4"),
    }
}

//! What a cluster is made of.

use crate::services::Role;
use std::{net::Ipv4Addr, path::PathBuf};

/// What to start. The default is one of each service, on data that goes away with it.
#[derive(Debug, Clone)]
pub struct Options {
    pub api: usize,
    pub live: usize,
    pub dispatcher: usize,
    pub counter: usize,
    pub builder: usize,
    /// NATS servers: one, or a cluster of three.
    pub nats: usize,
    pub redis: bool,
    /// Where the load balancer listens.
    pub address: Ipv4Addr,
    /// Kept, and found again by the next start; without one the data goes away with the cluster.
    pub data_dir: Option<PathBuf>,
    /// Postgres waits for the disk even if the data goes away with the cluster: for whoever measures.
    pub durable: bool,
    /// Where our programs are, if not beside this one.
    pub bin_dir: Option<PathBuf>,
    /// The registry: `default`, or the URL of a sparse index.
    pub index: String,
    /// Target triples to build for; none means this machine's.
    pub targets: Vec<String>,
    /// Jobs that a builder runs at once.
    pub slots: u16,
    /// More of the environment of all services of a role; wins over what the cluster sets.
    pub env: Vec<(Role, String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api: 1,
            live: 1,
            dispatcher: 1,
            counter: 1,
            builder: 1,
            nats: 1,
            redis: false,
            address: Ipv4Addr::LOCALHOST,
            data_dir: None,
            durable: false,
            bin_dir: None,
            index: "default".into(),
            targets: Vec::new(),
            slots: 1,
            env: Vec::new(),
        }
    }
}

impl Options {
    #[must_use]
    pub fn with_env(mut self, role: Role, key: &str, value: impl Into<String>) -> Self {
        self.env.push((role, key.to_owned(), value.into()));
        self
    }
}

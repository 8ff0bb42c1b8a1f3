//! A whole Cratemill on one machine: Postgres, NATS, an S3 server, a load balancer and every service, as children of
//! this process.
//!
//! `cargo xtask`, the end-to-end tests and the benches start it. Each stack has ports and data of its own, touches
//! nothing global, and leaves no process behind however its owner ends.

pub mod audit;
pub mod builders;
pub mod client;
pub mod cluster;
pub mod data_dir;
pub mod fixtures;
pub mod haproxy;
pub mod nats;
pub mod network;
mod options;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod redis;
pub mod s3;
pub mod secrets;
pub mod services;
mod spawner;

pub use cluster::Cluster;
pub use options::Options;
pub use services::Role;

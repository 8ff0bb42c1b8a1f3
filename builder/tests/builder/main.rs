//! The builder against real bubblewrap and real cargo, with crates made for each case. No network but loopback.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

mod archives;
mod dependencies;
mod fixture;
mod lab;
mod limits;
mod login;
mod peer;
mod process;
mod reconnect;
mod results;
mod secrets;
mod service;

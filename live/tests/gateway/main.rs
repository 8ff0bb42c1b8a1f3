//! The gateway as a process, with a real bus, database and object store.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod access;
mod balancers;
mod cbor;
mod clients;
mod crowd;
mod drain;
mod event_api;
mod events;
mod farm;
mod hostile;
mod limits;
mod logs;
mod mastodon;
mod outage;
mod proxy;
mod publisher;
mod races;
mod schedule;
mod slow;
mod sockets;
mod topics;
mod viewer;
mod websocket;

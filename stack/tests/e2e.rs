//! End-to-end tests: the real programs, database, bus, object store, load balancer and sandbox, each test with a
//! cluster of its own and a registry on loopback.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod end_to_end;

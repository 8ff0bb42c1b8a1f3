//! The dispatcher: what happens to jobs between the registry and the builders, and after the builders.
//!
//! ```text
//! registry -> [registry] -> jobs
//! builders' requests -> [requests] -> sessions --+
//!                                      jobs -----+-> [assignment] -> nodes -> builders
//! builders' outcomes -> [outcomes] -> artifacts, follow-up jobs, retries
//! leases that ran out -> [rescue], attempts that never end -> [deadline] -> retries
//! ended attempts -> [logs] -> object store
//! outbox -> [outbox] -> events
//! download counts -> [counts] -> a file for each day
//! ```
//! [`audit`] is a command beside all that: it reads what they have written, and says what is wrong with it.
//!
//! Any number of dispatchers run side by side: Postgres arbitrates with row locks, and advisory locks elect the one
//! that watches the registry and the one that relays the outbox. None of them holds state that another would miss.

pub mod app;
pub mod assignment;
pub mod audit;
pub mod cleanup;
pub mod config;
pub mod consume;
pub mod counts;
pub mod deadline;
pub mod ending;
pub mod logs;
pub mod matching;
pub mod metrics;
pub mod outbox;
pub mod outcomes;
pub mod registry;
pub mod requests;
pub mod rescue;
pub mod unserved;
pub mod wakes;

//! Reference points: what short statements on small tables do on this machine, in the same batches and on as many connections
//! as ours, and what four stored events of a job cost the bus. None of them deals turns, refuses what is queued twice, fences
//! or gives slots back; so what ours takes more is not all to be saved, but what these cannot do ours never will.

mod path;
mod queue;
mod tables;

pub(super) use path::{nats_us, postgres_us};
pub(super) use queue::{Measured, Promise, measure};

//! Flags and environment of `cratemill-dispatcher audit`.

use cratemill_protocol::JobId;
use cratemill_service::config::Nats;
use cratemill_store::{Database, audit::Scope, objects::ObjectStore};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Checks that the database, the bus and the object store hold what they should, and changes nothing.
///
/// Exit code 0: nothing was found; 1: something was; 2: the audit could not be made.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "audit")]
pub struct Config {
    #[command(flatten)]
    pub nats: Nats,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub objects: ObjectStore,
    #[command(flatten)]
    pub demands: Demands,
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Demands {
    /// Nothing may be under way any more: every job has ended, every log is archived, every queue is empty.
    #[arg(long)]
    pub at_rest: bool,
    /// With --at-rest: how long to wait for what is still on its way, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub settle_s: u64,
    /// Only what concerns this job.
    #[arg(long, value_name = "ID")]
    pub job: Option<JobId>,
    /// Leave out jobs that ended, and artifacts and uploads that were stored, before this time, as RFC 3339 has it.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<OffsetDateTime>,
}

impl Demands {
    pub(super) fn scope(&self) -> Scope {
        Scope { job: self.job, since: self.since }
    }
}

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "expected a time such as 2026-02-03T04:05:06Z".into())
}

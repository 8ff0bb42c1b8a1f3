//! `cratemill-dispatcher audit`, as a process.

use super::{Auditor, config::Config, report::Report};
use anyhow::Context as _;
use cratemill_service::{bus::Bus, config::LogFormat, telemetry};
use cratemill_store::{connect, objects::Objects};
use std::{
    io::{self, Write},
    process::ExitCode,
};

const NAME: &str = "cratemill-audit";
/// Something was found.
const FOUND: u8 = 1;
/// Nothing can be said.
const FAILED: u8 = 2;

/// Makes one audit and prints it.
pub fn main(config: &Config) -> ExitCode {
    telemetry::init_log(LogFormat::Auto);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
        .and_then(|runtime| runtime.block_on(audit(config)))
        .and_then(|report| print(&report, config.json).map(|()| report));
    match result {
        Ok(report) if report.found == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the audit could not be made");
            ExitCode::from(FAILED)
        }
    }
}

async fn audit(config: &Config) -> anyhow::Result<Report> {
    let pool = connect(&config.database.database_url, NAME);
    let bus = Bus::connect(&config.nats.nats_url, "dispatcher").await?;
    let objects = Objects::new(&config.objects);
    objects.check().await.context("cannot reach the object store")?;
    Auditor::new(pool, bus, objects, &config.demands).audit().await
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(out.flush()?)
}

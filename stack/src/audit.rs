//! `cratemill-dispatcher audit` over a running stack: what tests ask after everything they did to it.

use crate::{Role, cluster::Cluster, process::Command, services};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{fs, time::Duration};

/// It reads every object and every log of a test's few hundred jobs, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(3);
const NAME: &str = "audit";

/// Makes an audit with these arguments; its report, as JSON, whatever it found.
pub async fn audit(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let (program, log) =
        (services::bin_dir(None)?.join(Role::Dispatcher.program()), cluster.data_dir().join("log"));
    // Output is appended, and only this audit's is a document.
    let output = log.join(format!("{NAME}.log"));
    match fs::remove_file(&output) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut command =
        Command::new(NAME, program, &log).args([NAME, "--json"]).args(arguments.iter().copied());
    for (key, value) in cluster.env()? {
        command = command.env(key, value);
    }
    let process = command.env("RUST_LOG", "error").spawn().await?;
    let status = process.exited_within(TIMEOUT).await?;
    match status.with_context(|| format!("the audit takes more than {TIMEOUT:?}"))?.code() {
        Some(0 | 1) => serde_json::from_slice(&fs::read(&output)?).context("the audit's report is not JSON"),
        _ => bail!("the audit could not be made{}", process.log_tail()),
    }
}

/// What a report names, a line each, and how much more each check found; empty if nothing was found.
pub fn findings(report: &Value) -> Vec<String> {
    report["checks"].as_array().into_iter().flatten().flat_map(of_check).collect()
}

fn of_check(check: &Value) -> Vec<String> {
    let name = check["name"].as_str().unwrap_or_default();
    let shown = check["shown"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut findings: Vec<_> = shown.map(|finding| format!("{name}: {finding}")).collect();
    let more = check["found"].as_u64().unwrap_or_default().saturating_sub(findings.len() as u64);
    if more > 0 {
        findings.push(format!("{name}: and {more} more"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_that_was_found_is_left_out() {
        let report = json!({"found": 4, "checks": [
            {"name": "jobs", "looked_at": 9, "found": 3, "shown": ["job 1: lost", "job 2: lost"]},
            {"name": "logs", "looked_at": 9, "found": 0, "shown": []},
            {"name": "leases", "looked_at": 9, "found": 1, "shown": ["job 3"]},
        ]});
        let expected = ["jobs: job 1: lost", "jobs: job 2: lost", "jobs: and 1 more", "leases: job 3"];
        assert_eq!(findings(&report), expected);
    }
}

//! The cargo commands of a job, each in its sandbox.
//!
//! Which phase may do what:
//! ```text
//! fetch     network     source writable   cache writable    cargo only: no code of any crate runs
//! build     no network  source read-only  cache read-only   build scripts, macros: anything
//! metadata  no network  source read-only  cache read-only   cargo only
//! ```
//! The cache is shared by the jobs of the agent, because an index and the usual dependencies take a second or more to
//! get. It cannot be poisoned: only the fetch phase writes it, where only cargo runs, which files everything by the
//! registry it is from and checks it against that registry's checksums; crates see it read-only.
//!
//! Cargo runs in `/` and is told where the manifest is: it takes its configuration from the current folder upwards, so
//! a `.cargo/config.toml` of the crate is not read, and neither is a `rust-toolchain.toml`, which only rustup obeys.

use super::{Context, failure::Failure};
use crate::{
    log::Log,
    sandbox::{self, Bind, Bounds, Breach, Ended, Line, Phase, Report, Stdout},
    workdir::{JobDir, MAX_CACHE_BYTES},
};
use cratemill_protocol::builder::Job;
use reqwest::Url;
use std::{ffi::OsString, path::Path};

const SOURCE: &str = "/source";
const TARGET: &str = "/target";
const CARGO_HOME: &str = "/cargo";
/// The most binaries of one crate; its messages name each.
const MAX_BINARIES: usize = 1_000;
/// The longest path that the kernel opens. With [`MAX_BINARIES`] it bounds what a build can have us remember: a procedural
/// macro prints to cargo's output as it likes, and so says whatever cargo could say.
const MAX_BINARY_PATH_BYTES: usize = 4_096;
/// Metadata of the largest manifests is some hundred kilobytes.
const MAX_METADATA_BYTES: usize = 8 << 20;

/// What cargo says when it was the network's fault, in its own words or those of the libraries below it.
const NETWORK_TROUBLE: [&str; 12] = [
    "spurious network error",
    "Could not resolve host",
    "Couldn't resolve host",
    "Could not connect to server",
    "Couldn't connect to server",
    "Failed to connect to",
    "Connection refused",
    "Connection reset",
    "Timeout was reached",
    "Operation timed out",
    "SSL connect error",
    "got 5",
];

/// Cargo for one job.
#[derive(Debug)]
pub(super) struct Cargo<'a> {
    pub(super) context: &'a Context,
    pub(super) job: &'a Job,
    pub(super) dir: &'a JobDir,
    pub(super) bounds: &'a Bounds,
    pub(super) log: &'a Log,
    /// `{crate}-{version}`: the folder below the source.
    pub(super) package: &'a str,
}

struct Access {
    name: &'static str,
    network: bool,
}

const FETCH: Access = Access { name: "fetch", network: true };
const BUILD: Access = Access { name: "build", network: false };
const METADATA: Access = Access { name: "metadata", network: false };

impl Cargo<'_> {
    /// Downloads what the build needs. Milliseconds of cargo.
    pub(super) async fn fetch(&self) -> Result<u64, Failure> {
        let mut cargo_ms = 0;
        let lock = self.dir.path("source").join(self.package).join("Cargo.lock");
        if lock.is_file() {
            let report = self.run(&FETCH, self.fetch_args(true)?, &mut Stdout::Log).await?;
            cargo_ms += millis(&report);
            match report.ended {
                Ended::Exited { code: 0 } => return Ok(cargo_ms),
                Ended::Exited { .. } if !is_network_trouble(&report.stderr_tail) => {}
                _ => return Err(self.fetch_failure(&report)),
            }
            self.log.note("== the crate's Cargo.lock cannot be used as it is: making a new one").await?;
            tokio::fs::remove_file(&lock).await?;
        }
        let report = self.run(&FETCH, self.fetch_args(false)?, &mut Stdout::Log).await?;
        cargo_ms += millis(&report);
        match report.ended {
            Ended::Exited { code: 0 } => Ok(cargo_ms),
            _ => Err(self.fetch_failure(&report)),
        }
    }

    fn fetch_args(&self, locked: bool) -> Result<Vec<OsString>, Failure> {
        let mut args = self.common("fetch")?;
        args.extend(["--target".into(), OsString::from(&*self.job.target)]);
        if locked {
            args.push("--locked".into());
        }
        Ok(args)
    }

    fn fetch_failure(&self, report: &Report) -> Failure {
        match report.ended {
            Ended::Exited { .. } if is_network_trouble(&report.stderr_tail) => {
                Failure::infrastructure(format!("dependencies cannot be downloaded: {}", reason(report)))
            }
            Ended::Exited { .. } => {
                Failure::build(format!("dependencies cannot be resolved: {}", reason(report)))
            }
            ended => self.stopped(ended),
        }
    }

    /// Builds the binaries: where cargo says they are inside the sandbox, and milliseconds of cargo.
    pub(super) async fn build(&self) -> Result<(Vec<String>, u64), Failure> {
        let mut args = self.common("build")?;
        args.extend(
            ["--release", "--frozen", "--bins", "--message-format", "json-render-diagnostics"]
                .map(Into::into),
        );
        args.extend([
            "--target-dir".into(),
            TARGET.into(),
            "--target".into(),
            OsString::from(&*self.job.target),
        ]);
        let features = &self.job.features;
        if !features.default {
            args.push("--no-default-features".into());
        }
        if !features.names.is_empty() {
            let names: Vec<&str> = features.names.iter().map(String::as_str).collect();
            args.extend(["--features".into(), names.join(",").into()]);
        }
        // One more than allowed, to tell that there are too many.
        let mut stdout = Stdout::lines(sort_line, MAX_BINARIES + 1);
        let report = self.run(&BUILD, args, &mut stdout).await?;
        match report.ended {
            Ended::Exited { code: 0 } => {}
            Ended::Exited { .. } => {
                return Err(Failure::build(format!("cargo build failed: {}", reason(&report))));
            }
            ended => return Err(self.stopped(ended)),
        }
        let Stdout::Lines { kept: binaries, .. } = stdout else { return Ok((vec![], 0)) };
        if binaries.len() > MAX_BINARIES {
            return Err(Failure::output_too_large(format!(
                "the crate has more than {MAX_BINARIES} binaries"
            )));
        }
        Ok((binaries, millis(&report)))
    }

    /// `cargo metadata` of the crate alone: paths in it are those of the sandbox, so the same on every builder.
    pub(super) async fn metadata(&self) -> Result<(Vec<u8>, u64), Failure> {
        let mut args = self.common("metadata")?;
        args.extend(["--format-version", "1", "--no-deps", "--offline"].map(Into::into));
        let mut stdout = Stdout::result(MAX_METADATA_BYTES);
        let report = self.run(&METADATA, args, &mut stdout).await?;
        match report.ended {
            Ended::Exited { code: 0 } => {}
            Ended::Exited { .. } => {
                return Err(Failure::build(format!("cargo metadata failed: {}", reason(&report))));
            }
            ended => return Err(self.stopped(ended)),
        }
        match stdout {
            Stdout::Result { bytes, too_large: false, .. } => Ok((bytes, millis(&report))),
            _ => Err(Failure::output_too_large("the crate's metadata is larger than 8 MiB")),
        }
    }

    fn stopped(&self, ended: Ended) -> Failure {
        match ended {
            Ended::Killed(breach) => Failure::breach(breach, &self.bounds.limits),
            Ended::Cancelled => Failure::Cancelled,
            Ended::Exited { code } => Failure::build(format!("ended with code {code}")),
        }
    }

    fn common(&self, subcommand: &str) -> Result<Vec<OsString>, Failure> {
        let toolchain = &self.context.sandbox.toolchain;
        let manifest = format!("{SOURCE}/{}/Cargo.toml", self.package);
        let mut args = vec![sandbox::inside(toolchain, "bin/cargo").into(), subcommand.into()];
        args.extend(["--manifest-path".into(), OsString::from(manifest)]);
        if let Some(index) = &self.job.index {
            for setting in replaced_registry(index)? {
                args.extend(["--config".into(), OsString::from(setting)]);
            }
        }
        Ok(args)
    }

    async fn run(
        &self,
        access: &Access,
        command: Vec<OsString>,
        stdout: &mut Stdout,
    ) -> Result<Report, Failure> {
        let (source, target, scratch) =
            (self.dir.path("source"), self.dir.path("target"), self.dir.path("scratch"));
        let bind = |host: &Path, inside, writable| Bind { host: host.to_owned(), inside, writable };
        let phase = Phase {
            name: format!("{}-{}-{}", self.job.id, self.job.attempt, access.name),
            network: access.network,
            binds: vec![
                bind(&source, SOURCE, access.network),
                bind(self.dir.cache().path(), CARGO_HOME, access.network),
                bind(&target, TARGET, !access.network),
            ],
            environment: environment(self.context, self.bounds),
            command,
            scratch: &scratch,
            written: vec![source.clone(), target.clone()],
            cache: access.network.then(|| (self.dir.cache().path().to_owned(), MAX_CACHE_BYTES)),
        };
        let report = self.context.sandbox.run(&phase, self.bounds, stdout, self.log).await?;
        if report.ended == Ended::Killed(Breach::Cache) {
            self.dir.cache().set_full();
        }
        Ok(report)
    }
}

fn environment(context: &Context, bounds: &Bounds) -> Vec<(&'static str, String)> {
    let rustc = sandbox::inside(&context.sandbox.toolchain, "bin/rustc");
    vec![
        ("CARGO_HOME", CARGO_HOME.into()),
        ("CARGO_TARGET_DIR", TARGET.into()),
        ("RUSTC", rustc.display().to_string()),
        ("CARGO_BUILD_JOBS", bounds.limits.cpus.max(1).to_string()),
        ("CARGO_INCREMENTAL", "0".into()),
        ("CARGO_TERM_COLOR", "never".into()),
        ("CARGO_TERM_PROGRESS_WHEN", "never".into()),
        // The agent bounds the cache, and cargo must not tidy up below a running neighbour.
        ("CARGO_CACHE_AUTO_CLEAN_FREQUENCY", "never".into()),
    ]
}

/// Settings that put `index` in the place of cargo's default registry.
fn replaced_registry(index: &str) -> Result<[String; 2], Failure> {
    let url = index.strip_prefix("sparse+").and_then(|url| Url::parse(url).ok());
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    // The parsed form holds no quote, backslash or control character, so it can stand in a TOML string.
    let url =
        url.map(String::from).filter(|url| !url.contains(['"', '\\']) && !url.contains(char::is_control));
    let url = url.ok_or_else(|| Failure::infrastructure("the job's index is not a sparse+http(s) URL"))?;
    let slash = if url.ends_with('/') { "" } else { "/" };
    Ok([
        "source.crates-io.replace-with=\"replacement\"".into(),
        format!("source.replacement.registry=\"sparse+{url}{slash}\""),
    ])
}

fn millis(report: &Report) -> u64 {
    u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX)
}

fn is_network_trouble(stderr: &str) -> bool {
    NETWORK_TROUBLE.iter().any(|words| stderr.contains(words))
}

/// The first error that cargo printed, for the outcome's message; the log has all of it.
fn reason(report: &Report) -> String {
    let Ended::Exited { code } = report.ended else { return "stopped".into() };
    let error = report.stderr_tail.lines().find(|line| line.starts_with("error"));
    match error {
        Some(line) => line.chars().take(300).collect(),
        None => format!("it ended with code {code}"),
    }
}

/// Keeps where cargo put binaries; what is no message of cargo's belongs to the log.
fn sort_line(line: &str) -> Line {
    if !line.starts_with("{\"reason\":\"") {
        return Line::Log;
    }
    let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { return Line::Log };
    let is_binary =
        message["reason"] == "compiler-artifact" && message["target"]["kind"] == serde_json::json!(["bin"]);
    match message["executable"].as_str() {
        Some(path) if is_binary && path.len() > MAX_BINARY_PATH_BYTES => Line::Log,
        Some(path) if is_binary => Line::Keep(path.to_owned()),
        _ => Line::Drop,
    }
}

/// Where the build's files are inside the sandbox.
pub(super) const fn target_inside() -> &'static str {
    TARGET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sparse_url_replaces_the_registry() {
        let settings = replaced_registry("sparse+http://127.0.0.1:8000/index").unwrap();
        assert_eq!(settings[1], "source.replacement.registry=\"sparse+http://127.0.0.1:8000/index/\"");
        for bad in ["", "http://x/", "sparse+file:///etc", "sparse+http://", "/x"] {
            assert!(replaced_registry(bad).is_err(), "{bad}");
        }
        let quoted = replaced_registry("sparse+http://x/\"\nbuild.rustc=\"/source/evil").unwrap();
        assert!(!quoted[1].contains('\n') && quoted[1].matches('"').count() == 2, "{quoted:?}");
    }

    #[test]
    fn binaries_are_found_in_messages() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"x"},"executable":"/target/x"}"#;
        assert!(matches!(sort_line(line), Line::Keep(path) if path == "/target/x"));
        for dropped in [
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ] {
            assert!(matches!(sort_line(dropped), Line::Drop), "{dropped}");
        }
        let endless = line.replace("/target/x", &"x".repeat(MAX_BINARY_PATH_BYTES + 1));
        for logged in ["{\"reason\":\"", "hello", "", &endless] {
            assert!(matches!(sort_line(logged), Line::Log), "{logged}");
        }
    }
}

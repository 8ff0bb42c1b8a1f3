//! The Rust toolchain that jobs are built with.
//!
//! The real `cargo` and `rustc` of a sysroot, never rustup's proxies: those would obey a crate's `rust-toolchain.toml`.

use anyhow::{Context, bail};
use cratemill_protocol::{Target, builder::MAX_TARGETS};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug, Clone)]
pub struct Toolchain {
    pub sysroot: PathBuf,
    pub host: Target,
    /// What goes into manifests: `rustc 1.95.0 (...)`.
    pub version: String,
}

impl Toolchain {
    /// That of `sysroot`, or of the `rustc` on PATH.
    pub fn find(sysroot: Option<&Path>) -> anyhow::Result<Self> {
        let sysroot = if let Some(dir) = sysroot {
            dir.to_owned()
        } else {
            let output = run(Path::new("rustc"), &["--print", "sysroot"])
                .context("no Rust toolchain found: install one, or give --toolchain")?;
            PathBuf::from(output.trim())
        };
        let sysroot = sysroot
            .canonicalize()
            .with_context(|| format!("there is no toolchain at {}", sysroot.display()))?;
        if !sysroot.join("bin/cargo").is_file() {
            bail!("the toolchain {} has no bin/cargo", sysroot.display());
        }
        let verbose = run(&sysroot.join("bin/rustc"), &["-vV"])?;
        let version = verbose.lines().next().unwrap_or_default().to_owned();
        let host =
            verbose.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        Ok(Self { host: host.parse()?, version, sysroot })
    }

    /// The targets to offer: those asked for, if the toolchain has them, or its host.
    pub fn targets(&self, wanted: &[Target]) -> anyhow::Result<Vec<Target>> {
        if wanted.is_empty() {
            return Ok(vec![self.host.clone()]);
        }
        if wanted.len() > MAX_TARGETS {
            bail!("a builder offers at most {MAX_TARGETS} targets");
        }
        for target in wanted {
            if !self.sysroot.join("lib/rustlib").join(&**target).join("lib").is_dir() {
                bail!(
                    "the toolchain {} has no standard library for {target}: rustup target add {target}",
                    self.sysroot.display()
                );
            }
        }
        let mut targets = wanted.to_vec();
        targets.sort();
        targets.dedup();
        Ok(targets)
    }
}

fn run(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{} does not run", program.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

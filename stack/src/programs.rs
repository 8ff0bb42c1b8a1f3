//! Where the programs are that a stack runs, and how those that are missing get here.

use anyhow::{Result, bail};
use nix::unistd::Uid;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A program of the system and the Debian package that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

pub const POSTGRES: Program = Program { name: "postgres", package: "postgresql" };
pub const NATS_SERVER: Program = Program { name: "nats-server", package: "nats-server" };
pub const HAPROXY: Program = Program { name: "haproxy", package: "haproxy" };
pub const REDIS_SERVER: Program = Program { name: "redis-server", package: "redis-server" };
/// Beside which a bench measures redirects.
pub const NGINX: Program = Program { name: "nginx", package: "nginx" };
/// A module of nginx: its peer among servers of events.
pub const NCHAN: Program = Program { name: "ngx_nchan_module.so", package: "libnginx-mod-nchan" };
pub const BUBBLEWRAP: Program = Program { name: "bwrap", package: "bubblewrap" };
pub const SETPRIV: Program = Program { name: "setpriv", package: "util-linux" };
pub const NSENTER: Program = Program { name: "nsenter", package: "util-linux" };
/// Without it a machine has no networks to cut: tests that need one say so, or fail where they have to run.
pub const IP: Program = Program { name: "ip", package: "iproute2" };
/// What Rust links with and what build scripts compile C with.
pub const CC: Program = Program { name: "cc", package: "build-essential" };

/// What every stack needs.
pub const BASE: &[Program] = &[SETPRIV, POSTGRES, NATS_SERVER, HAPROXY, BUBBLEWRAP, CC];

/// Servers stand outside an ordinary user's PATH, and so do modules.
const EXTRA_FOLDERS: &[&str] = &[
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/lib/nginx/modules",
];

impl Program {
    pub fn find(self) -> Result<PathBuf> {
        let folders = folders();
        match folders.iter().map(|folder| folder.join(self.name)).find(|path| is_program(path)) {
            Some(path) => Ok(path),
            None => bail!(
                "{} is not installed: run `apt-get install {}` as root and try again",
                self.name,
                self.package
            ),
        }
    }
}

/// Installs what is missing of `programs`, after saying so with `say`.
pub fn install_missing(programs: &[Program], say: impl Fn(&str)) -> Result<()> {
    let missing: Vec<_> = programs.iter().copied().filter(|program| program.find().is_err()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|program| program.name).collect();
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    let by_hand = format!(
        "missing: {}; install these packages and try again: apt-get install {}",
        names.join(", "),
        packages.join(" ")
    );
    let Some(prefix) = apt_prefix() else { bail!("{by_hand}") };
    say(&format!("installing {} (apt-get install {})", names.join(", "), packages.join(" ")));
    // A fresh container has no package lists; a stale mirror is no reason to give up before trying.
    let _ = apt(&prefix, &["update"]);
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&packages);
    if !apt(&prefix, &arguments) || missing.iter().any(|program| program.find().is_err()) {
        bail!("apt-get could not install them; {by_hand}");
    }
    Ok(())
}

/// How to call apt-get with the rights it needs, if there is a way without a password.
fn apt_prefix() -> Option<Vec<&'static str>> {
    let apt = Program { name: "apt-get", package: "apt" };
    apt.find().ok()?;
    if Uid::effective().is_root() {
        return Some(vec!["apt-get"]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    sudo.then(|| vec!["sudo", "-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"])
}

fn apt(prefix: &[&str], arguments: &[&str]) -> bool {
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            tracing::warn!("apt-get {}: {}", arguments.join(" "), text.trim_end());
            false
        }
        Err(error) => {
            tracing::warn!(%error, "apt-get did not start");
            false
        }
    }
}

fn folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Postgres first: its own folder also holds initdb and pg_isready, of the same version.
    let mut folders = postgres_folders();
    folders.extend(std::env::split_paths(&path));
    folders.extend(EXTRA_FOLDERS.iter().map(PathBuf::from));
    folders
}

/// Debian's versioned folders, newest version first.
fn postgres_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .collect();
    folders.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    folders.into_iter().map(|(_, folder)| folder).collect()
}

/// A module is loaded, not executed.
fn is_program(path: &Path) -> bool {
    let is_module = path.extension().is_some_and(|extension| extension == "so");
    fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && (is_module || meta.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let ghost = Program { name: "no-such-program", package: "no-such-package" };
        let error = ghost.find().unwrap_err().to_string();
        assert!(
            error.contains("no-such-program") && error.contains("apt-get install no-such-package"),
            "{error}"
        );
    }

    #[test]
    fn what_is_there_is_not_installed_again() {
        let shell = Program { name: "sh", package: "dash" };
        install_missing(&[shell], |text| panic!("{text}")).unwrap();
    }
}

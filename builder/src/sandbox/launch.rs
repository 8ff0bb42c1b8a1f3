//! The command line of a sandbox: what it sees, and nothing else.
//!
//! ```text
//! sh (joins the cgroups) = bwrap -> bwrap (pid 1 of the sandbox) -> prlimit = the command
//! ```

use super::{Phase, cgroup::Group};
use crate::toolchain::Toolchain;
use cratemill_protocol::Limits;
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Where the toolchain is inside.
pub(super) const TOOLCHAIN: &str = "/toolchain";
/// The home folder inside: empty, gone at the end.
const HOME: &str = "/home/builder";

/// Joins the cgroups before anything of the sandbox runs, and opens the file that bubblewrap reports to:
/// both would take `unsafe` between fork and exec. Arguments: report, number of cgroups, cgroups, command.
const LAUNCH: &str = r#"exec 3>"$1" || exit 125
n=$2
shift 2
while [ "$n" -gt 0 ]; do
  echo 0 >"$1/cgroup.procs" || exit 125
  shift
  n=$((n - 1))
done
exec "$@""#;

/// Files of the host that compiling and linking need.
const SYSTEM_FILES: [&str; 4] =
    ["/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"];
/// And those that fetching over TLS needs.
const NETWORK_FILES: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/pki",
];
/// The owner's settings that the network phase takes over: where to trust and which way out.
const NETWORK_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "ALL_PROXY",
];
/// A sandbox's scratch memory (/tmp, /dev/shm, home) is at most this share of its memory.
const SCRATCH_SHARE: u64 = 8;
/// The kernel's own bound on processes is this many times the job's: whoever is over the job's is seen and told so, where
/// the kernel's would only make forks fail. It does not bind root.
const PROCESSES_SLACK: u32 = 2;
/// Open files of one process: linkers of large programs want some thousands.
const MAX_OPEN_FILES: u32 = 4_096;

pub(super) fn command(
    toolchain: &Toolchain,
    phase: &Phase<'_>,
    limits: &Limits,
    group: Option<&Group>,
    report: &Path,
) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command.args(["-c", LAUNCH, "sandbox"]).arg(report);
    let folders = group.map(Group::folders).unwrap_or_default();
    command.arg(folders.len().to_string()).args(folders);
    command.arg("bwrap").args(isolation(phase.network)).args(["--json-status-fd", "3"]);
    command.args(filesystem(toolchain, phase, limits)).args(environment(toolchain, phase)).arg("--");
    command.args([
        OsString::from("prlimit"),
        "--core=0".into(),
        format!("--fsize={}", limits.output_bytes).into(),
        format!("--nofile={MAX_OPEN_FILES}").into(),
        format!("--nproc={}", limits.processes.saturating_mul(PROCESSES_SLACK)).into(),
        "--".into(),
    ]);
    command.args(phase.command.iter());
    command
}

fn isolation(network: bool) -> Vec<OsString> {
    let mut args = [
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--new-session",
        "--die-with-parent",
    ]
    .map(OsString::from)
    .to_vec();
    if network {
        args.push("--share-net".into());
    }
    args
}

fn filesystem(toolchain: &Toolchain, phase: &Phase<'_>, limits: &Limits) -> Vec<OsString> {
    let mut args = Args::default();
    args.read_only("/usr".as_ref(), "/usr");
    for folder in ["/bin", "/sbin", "/lib", "/lib32", "/lib64"] {
        // On most systems a link into /usr.
        match std::fs::read_link(folder) {
            Ok(to) => args.push(&[OsStr::new("--symlink"), to.as_os_str(), folder.as_ref()]),
            Err(_) => args.push(&["--ro-bind-try", folder, folder]),
        }
    }
    for file in SYSTEM_FILES.iter().chain(if phase.network { &NETWORK_FILES[..] } else { &[] }) {
        args.push(&["--ro-bind-try", file, file]);
    }
    if phase.network {
        for trusted in ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().filter_map(std::env::var_os) {
            args.push(&[OsStr::new("--ro-bind-try"), &trusted, &trusted]);
        }
    }
    if !toolchain.sysroot.starts_with("/usr") {
        args.read_only(&toolchain.sysroot, TOOLCHAIN);
    }
    let scratch = (limits.memory_bytes / SCRATCH_SHARE).to_string();
    args.push(&[
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        &scratch,
        "--tmpfs",
        "/dev/shm",
        "--remount-ro",
        "/dev",
    ]);
    args.push(&["--size", &scratch, "--tmpfs", "/tmp", "--size", &scratch, "--tmpfs", HOME]);
    for bind in &phase.binds {
        let option = if bind.writable { "--bind" } else { "--ro-bind" };
        args.push(&[OsStr::new(option), bind.host.as_os_str(), OsStr::new(bind.inside)]);
    }
    // The root itself is memory that no limit counts. And cargo looks for its configuration from the current folder
    // upwards: outside the source there is none, whatever the crate brings.
    args.push(&["--remount-ro", "/", "--chdir", "/"]);
    args.0
}

fn environment(toolchain: &Toolchain, phase: &Phase<'_>) -> Vec<OsString> {
    let mut args = Args::default();
    let bin = inside(toolchain, "bin");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    for (name, value) in [("PATH", path.as_str()), ("HOME", HOME), ("USER", "builder"), ("TMPDIR", "/tmp")] {
        args.push(&["--setenv", name, value]);
    }
    for (name, value) in [("LANG", "C.UTF-8"), ("TERM", "dumb"), ("SHELL", "/bin/sh")] {
        args.push(&["--setenv", name, value]);
    }
    for (name, value) in &phase.environment {
        args.push(&["--setenv", *name, value.as_str()]);
    }
    if phase.network {
        for name in NETWORK_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                args.push(&[OsStr::new("--setenv"), name.as_ref(), &value]);
            }
        }
    }
    args.0
}

/// A path of the toolchain as the sandbox sees it.
pub(crate) fn inside(toolchain: &Toolchain, path: &str) -> PathBuf {
    let root = if toolchain.sysroot.starts_with("/usr") { &toolchain.sysroot } else { Path::new(TOOLCHAIN) };
    root.join(path)
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn push<const N: usize, T: AsRef<OsStr>>(&mut self, args: &[T; N]) {
        self.0.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
    }

    fn read_only(&mut self, host: &Path, inside: &str) {
        self.push(&[OsStr::new("--ro-bind"), host.as_os_str(), inside.as_ref()]);
    }
}

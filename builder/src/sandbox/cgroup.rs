//! Control groups, where this machine lets us make them: version 2 if it is delegated, version 1 if it is writable.
//!
//! Machines differ, so it is found out once at the start. Without any, [`super::supervise`] measures and kills instead.

use cratemill_protocol::Limits;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// A killed process leaves its group within milliseconds; a group that stays longer is left to the next start.
const REMOVE_TRIES: u32 = 100;
const REMOVE_WAIT: Duration = Duration::from_millis(20);
/// The scheduler's period that a share of cores is measured in: its default.
const CPU_PERIOD_US: u64 = 100_000;
const MOUNTS: &str = "/proc/self/mountinfo";

/// The kind of groups this machine has, and the folders that ours are made in.
#[derive(Debug, Clone)]
pub enum Cgroups {
    V2 { base: PathBuf },
    V1 { memory: PathBuf, pids: PathBuf, cpu: Option<PathBuf> },
    None,
}

#[derive(Debug)]
pub struct Group {
    version: Version,
    /// For version 1 in the order memory, pids, cpu.
    folders: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Cgroups {
    /// Tries what there is; `prefix` begins the names of our groups.
    pub fn detect(prefix: &str) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        let found = [find_v2(&own, &mounts), find_v1(&own, &mounts)];
        found.into_iter().flatten().find(|cgroups| cgroups.work(prefix)).unwrap_or(Self::None)
    }

    pub fn describe(&self) -> &'static str {
        match self {
            Self::V2 { .. } => "cgroup v2",
            Self::V1 { .. } => "cgroup v1",
            Self::None => "measured",
        }
    }

    fn work(&self, prefix: &str) -> bool {
        let probe = self.create(&format!("{prefix}probe"), &Limits::default());
        let works = matches!(probe, Ok(Some(_)));
        if let Ok(Some(group)) = probe {
            group.folders.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        }
        works
    }

    /// A group with these limits; none where there are no groups.
    pub fn create(&self, name: &str, limits: &Limits) -> io::Result<Option<Group>> {
        let cpu_us = u64::from(limits.cpus.max(1)) * CPU_PERIOD_US;
        let (memory, pids) = (limits.memory_bytes.to_string(), limits.processes.to_string());
        let group = match self {
            Self::None => return Ok(None),
            Self::V2 { base } => {
                let group = Group { version: Version::Two, folders: vec![base.join(name)] };
                group.make(
                    0,
                    &[
                        ("memory.max", memory),
                        ("memory.oom.group", "1".into()),
                        ("pids.max", pids),
                        ("cpu.max", format!("{cpu_us} {CPU_PERIOD_US}")),
                    ],
                )?;
                // Only where the machine has swap accounting.
                drop(fs::write(base.join(name).join("memory.swap.max"), "0"));
                group
            }
            Self::V1 { memory: memory_base, pids: pids_base, cpu } => {
                let bases = [Some(memory_base), Some(pids_base), cpu.as_ref()];
                let folders = bases.into_iter().flatten().map(|base| base.join(name)).collect();
                let group = Group { version: Version::One, folders };
                group.make(0, &[("memory.limit_in_bytes", memory.clone())])?;
                drop(fs::write(group.folders[0].join("memory.memsw.limit_in_bytes"), memory));
                group.make(1, &[("pids.max", pids)])?;
                if cpu.is_some() {
                    group.make(
                        2,
                        &[
                            ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                            ("cpu.cfs_quota_us", cpu_us.to_string()),
                        ],
                    )?;
                }
                group
            }
        };
        Ok(Some(group))
    }

    /// Kills and removes what an agent that died without cleaning up left behind.
    pub async fn remove_leftovers(&self, prefix: &str) {
        let bases: Vec<&PathBuf> = match self {
            Self::V2 { base } => vec![base],
            Self::V1 { memory, pids, cpu } => {
                [Some(memory), Some(pids), cpu.as_ref()].into_iter().flatten().collect()
            }
            Self::None => vec![],
        };
        for base in bases {
            for entry in fs::read_dir(base).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    Group { version: Version::One, folders: vec![entry.path()] }.remove().await;
                }
            }
        }
    }
}

/// Our own group's folder, if its controllers can be handed on to groups below it.
fn find_v2(own: &str, mounts: &str) -> Option<Cgroups> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let base = folder_of(mounts, |kind, _| kind == "cgroup2", path)?;
    let controllers = fs::read_to_string(base.join("cgroup.controllers")).ok()?;
    if !["memory", "pids", "cpu"]
        .iter()
        .all(|wanted| controllers.split_whitespace().any(|has| has == *wanted))
    {
        return None;
    }
    // A group that hands controllers on holds no process itself: the agent moves to a group of its own.
    let agent = base.join("cratemill-agent");
    fs::create_dir_all(&agent).ok()?;
    let moved = fs::write(agent.join("cgroup.procs"), "0");
    let handed_on = moved.and_then(|()| fs::write(base.join("cgroup.subtree_control"), "+memory +pids +cpu"));
    if handed_on.is_err() {
        // Back to where our owner put us. What fails now had failed before.
        drop(fs::write(base.join("cgroup.procs"), "0"));
        drop(fs::remove_dir(&agent));
        return None;
    }
    Some(Cgroups::V2 { base })
}

fn find_v1(own: &str, mounts: &str) -> Option<Cgroups> {
    let base = |controller: &str| {
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            fields.next()?.split(',').any(|name| name == controller).then_some(())?;
            fields.next()
        })?;
        let is_its_mount =
            |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|o| o == controller);
        folder_of(mounts, is_its_mount, path)
    };
    Some(Cgroups::V1 { memory: base("memory")?, pids: base("pids")?, cpu: base("cpu") })
}

/// Where a group's path is mounted; the mount's root when a container shows only a part of the tree.
fn folder_of(mounts: &str, wanted: impl Fn(&str, &str) -> bool, path: &str) -> Option<PathBuf> {
    // id parent device root mount-point options [tags] - kind source super-options
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let mount = Path::new(left.split(' ').nth(4)?);
        let below = mount.join(path.trim_start_matches('/'));
        wanted(kind, options).then(|| if below.is_dir() { below } else { mount.to_owned() })
    })
}

impl Group {
    fn make(&self, index: usize, values: &[(&str, String)]) -> io::Result<()> {
        let folder = &self.folders[index];
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        values.iter().try_for_each(|(file, value)| fs::write(folder.join(file), value))
    }

    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether the kernel has killed a process of the group for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        self.counter(0, file, "oom_kill") > 0
    }

    /// Whether the group was refused a process.
    pub(super) fn ran_out_of_processes(&self) -> bool {
        let index = match self.version {
            Version::One => 1,
            Version::Two => 0,
        };
        self.counter(index, "pids.events", "max") > 0
    }

    fn counter(&self, index: usize, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(self.folders[index].join(file)).unwrap_or_default();
        let of_line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        text.lines().find_map(of_line).unwrap_or(0)
    }

    /// Kills what is left in it and removes it.
    pub(super) async fn remove(self) {
        for folder in &self.folders {
            for _ in 0..REMOVE_TRIES {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {}
                    _ => break,
                }
                super::process::kill_all(&folder.join("cgroup.procs"));
                tokio::time::sleep(REMOVE_WAIT).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in the place of a group: what is written into it shows what was asked of the kernel.
    #[test]
    fn an_agent_that_cannot_hand_controllers_on_goes_back_to_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        fs::write(base.join("cgroup.controllers"), "cpu memory pids").unwrap();
        let mounts = format!("1 2 0:1 / {} rw - cgroup2 none rw", base.display());
        assert!(matches!(find_v2("0::/", &mounts), Some(Cgroups::V2 { .. })));
        assert!(!base.join("cgroup.procs").exists(), "it stays in the group of its own");
        // A file that cannot be written, even by root.
        fs::remove_file(base.join("cgroup.subtree_control")).unwrap();
        fs::create_dir(base.join("cgroup.subtree_control")).unwrap();
        assert!(find_v2("0::/", &mounts).is_none());
        assert_eq!(fs::read_to_string(base.join("cgroup.procs")).unwrap(), "0");
    }
}

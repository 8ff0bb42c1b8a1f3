//! The processes of a sandbox, found in /proc: what they use, and how all of them end.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
};

/// What a tree of processes uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Memory that is no file's; what processes share counts for each of them.
    pub(super) memory_bytes: u64,
    /// Processes and threads.
    pub(super) processes: u64,
}

/// Adds up `root` and all below it. A process that ends meanwhile does not count.
pub(super) fn usage_of_tree(root: u32) -> Usage {
    let mut children = children();
    let mut usage = Usage::default();
    let mut todo = vec![root];
    while let Some(pid) = todo.pop() {
        for (child, threads) in children.remove(&pid).unwrap_or_default() {
            usage.processes += threads;
            usage.memory_bytes += own_memory(child);
            todo.push(child);
        }
    }
    usage
}

/// Of each process its children, with their numbers of threads.
fn children() -> HashMap<u32, Vec<(u32, u64)>> {
    let mut children: HashMap<u32, Vec<(u32, u64)>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some((parent, threads)) = read_stat(pid) {
            children.entry(parent).or_default().push((pid, threads));
        }
    }
    children
}

/// Parent and number of threads.
fn read_stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// The second field is the program's name in brackets and may hold anything, brackets included.
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let threads = fields.nth(15)?.parse().ok()?;
    Some((parent, threads))
}

fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    parse_memory(&status)
}

/// Shared memory counts: nothing else bounds what a build maps of it. The name, which may hold anything, is one line.
fn parse_memory(status: &str) -> u64 {
    let kib = |line: &str| {
        let rest = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:"))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    status.lines().filter_map(kib).sum::<u64>().saturating_mul(1_024)
}

/// Ends a sandbox: with pid 1 of its namespace, every process in it dies.
pub(super) fn kill_sandbox(launcher: u32, report: &Path) {
    kill_pid(init_of(launcher, report).unwrap_or(launcher));
}

/// Tells what runs in a sandbox to end by itself: what its command has started, or the command if that is all there is.
/// With the command the whole sandbox ends, so a command that waits for what it has started gives that the time it needs.
#[derive(Debug, Default)]
pub(super) struct Asker {
    /// Nobody is told twice: to many programs a second signal says to end at once.
    asked: HashSet<u32>,
}

impl Asker {
    /// Asks those that have not been asked before: a command may start something else between two looks.
    pub(super) fn ask(&mut self, launcher: u32, report: &Path) {
        let Some(init) = init_of(launcher, report) else { return kill_pid(launcher) };
        let mut children = children();
        let mut take = |pid| {
            children.remove(&pid).unwrap_or_default().into_iter().map(|(pid, _)| pid).collect::<Vec<_>>()
        };
        for command in take(init) {
            let mut todo = take(command);
            if todo.is_empty() {
                self.tell(command);
            }
            while let Some(pid) = todo.pop() {
                todo.extend(take(pid));
                self.tell(pid);
            }
        }
    }

    fn tell(&mut self, pid: u32) {
        if self.asked.insert(pid) {
            send(pid, Signal::SIGTERM);
        }
    }
}

/// Process 1 of a sandbox that is set up.
fn init_of(launcher: u32, report: &Path) -> Option<u32> {
    let init = report_number(report, "child-pid").and_then(|pid| u32::try_from(pid).ok());
    init.filter(|pid| read_stat(*pid).is_some_and(|(parent, _)| parent == launcher))
}

fn kill_pid(pid: u32) {
    send(pid, Signal::SIGKILL);
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It fails only when the process is gone, which is what we want.
        _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills every process that a cgroup lists.
pub(super) fn kill_all(procs: &Path) {
    for pid in fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
        kill_pid(pid);
    }
}

/// What the command ended with, as bubblewrap reported it; none if it never got that far.
pub(super) fn exit_code(report: &Path) -> Option<i64> {
    report_number(report, "exit-code")
}

fn report_number(report: &Path, key: &str) -> Option<i64> {
    let text = fs::read_to_string(report).ok()?;
    let objects = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    objects.map_while(Result::ok).find_map(|object| object.get(key)?.as_i64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_move_the_fields() {
        let stat = "42 (a) S 1 2) S 7 42 42 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 3 0 100 1000 10";
        assert_eq!(parse_stat(stat), Some((7, 3)));
        assert_eq!(parse_stat("42"), None);
    }

    #[test]
    fn memory_is_what_is_no_files() {
        let status = "Name:\tRssAnon: 9 kB\nVmRSS:\t    4000 kB\nRssAnon:\t     100 kB\nRssFile:\t    1000 kB\nRssShmem:\t      20 kB\n";
        assert_eq!(parse_memory(status), 120 * 1_024);
        assert_eq!(parse_memory(""), 0);
    }

    #[test]
    fn a_tree_counts_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let usage = usage_of_tree(std::process::id());
        kill_pid(child.id());
        child.wait().unwrap();
        assert!(usage.processes >= 1);
    }
}

//! Crates whose builds take their time, and say how far they are.

use super::scene::{Scene, until};
use cratemill_stack::fixtures::Package;
use serde_json::{Value, json};

/// Prints `line 1` to `line <lines>` while it is compiled, one every `pause_ms`: a procedural macro runs in the compiler,
/// whose output cargo passes on as it comes.
pub(super) fn talker(name: &str, lines: usize, pause_ms: u64) -> Package {
    let manifest = format!(
        "[package]\nedition = \"2024\"\nname = \"{name}\"\nversion = \"0.1.0\"\n[lib]\nname = \"talk\"\nproc-macro = true\n"
    );
    let library = format!(
        "use std::io::Write;\n#[proc_macro]\npub fn talk(_: proc_macro::TokenStream) -> proc_macro::TokenStream {{\n\
         for line in 1..={lines} {{\nprintln!(\"line {{line}}\");\n_ = std::io::stdout().flush();\n\
         std::thread::sleep(std::time::Duration::from_millis({pause_ms}));\n}}\nDefault::default()\n}}\n"
    );
    let program = "talk::talk!();\nfn main() {\n    println!(\"talked\");\n}\n";
    Package::new(&manifest).unwrap().file("src/lib.rs", library).file("src/main.rs", program)
}

/// Never ends, and takes no notice of SIGTERM. What runs is `/bin/sleep <mark>`.
pub(super) fn stubborn(name: &str, mark: u32) -> Package {
    let manifest = format!(
        "[package]\nedition = \"2024\"\nname = \"{name}\"\nversion = \"0.1.0\"\nbuild = \"build.rs\"\n"
    );
    let script = format!(
        "fn main() {{\n    let args = [\"-c\", \"trap '' TERM; /bin/sleep {mark}\"];\n\
         \x20   std::process::Command::new(\"/bin/sh\").args(args).status().unwrap();\n}}\n"
    );
    Package::new(&manifest).unwrap().file("build.rs", script).file("src/main.rs", "fn main() {}\n")
}

/// The crate's tarball, and no other job of it: a crate that is new here gets one of its own accord.
pub(super) async fn only_job(scene: &Scene, krate: &str) -> Value {
    let id = scene.enqueue(krate, "tarball").await["id"].clone();
    for job in scene.client.list(&format!("/api/v1/jobs?crate={krate}")).await.unwrap() {
        if job["id"] != id {
            // One that has ended is no trouble any more: the tarball that follows from it is this one.
            let _ = scene.client.post(&format!("/api/v1/jobs/{}/cancel", job["id"]), &json!({})).await;
        }
    }
    id
}

/// Waits until the build has printed this line. A node that is asked may be one that was just killed.
pub(super) async fn has_said(scene: &Scene, job: &Value, line: usize) {
    until("a line of the build", async || {
        let log = scene.get(&format!("/api/v1/jobs/{job}/log")).await;
        let text = if log.status() == 200 { log.text().await.unwrap_or_default() } else { String::new() };
        text.contains(&format!("line {line}\n")).then_some(())
    })
    .await;
}

/// Each line once and in order.
pub(super) fn assert_whole(log: &str, lines: usize) {
    let said: Vec<_> = log.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<_> = (1..=lines).map(|line| format!("line {line}")).collect();
    assert_eq!(said, expected, "{log}");
}

/// The processes whose command line is this, with spaces between the words.
pub(super) fn processes(command: &str) -> Vec<u32> {
    let wanted = format!("{}\0", command.replace(' ', "\0"));
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes())
    })
    .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    .collect()
}

/// Whether a builder has any sandbox: a process that it has started.
pub(super) fn has_children(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.into_iter().any(|task| {
        std::fs::read_to_string(task.path().join("children")).is_ok_and(|text| !text.trim().is_empty())
    })
}

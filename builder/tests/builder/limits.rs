//! Each way for a crate to fail, by a crate made for it, with and without cgroups.

use crate::{
    fixture,
    lab::{Lab, Run},
};
use cratemill_protocol::{FailureClass, Limits, Outcome, builder::Event};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn limits() -> Limits {
    Limits { wall_s: 60, memory_bytes: 2048 * MIB, ..Limits::default() }
}

#[tokio::test]
async fn does_not_compile() {
    let mut lab = Lab::new().await;
    let run = lab.build(fixture::demo(&[("src/main.rs", "fn main() { let x: u8 = \"text\"; }")])).await;
    run.assert_failed(FailureClass::Build, "cargo build failed: error[E0308]: mismatched types");
}

#[tokio::test]
async fn builds_for_ever() {
    let mut lab = Lab::new().await;
    let source =
        fixture::with_build_script("loop { std::thread::sleep(std::time::Duration::from_secs(1)); }");
    let run = lab.build_within(source, Limits { wall_s: 3, ..limits() }).await;
    run.assert_failed(FailureClass::Timeout, "killed: took longer than 3 s");
}

const MEMORY_HOG: &str = "let mut all = Vec::new();\nloop { all.push(vec![1u8; 1 << 20]); }";

async fn hogs_memory(mut lab: Lab) {
    let limits = Limits { memory_bytes: 512 * MIB, ..limits() };
    let run = lab.build_within(fixture::with_build_script(MEMORY_HOG), limits).await;
    run.assert_failed(FailureClass::OutOfMemory, "killed: used more than 512 MiB of memory");
}

#[tokio::test]
async fn hogs_memory_in_a_cgroup() {
    if let Some(lab) = Lab::with_cgroups().await {
        hogs_memory(lab).await;
    }
}

#[tokio::test]
async fn hogs_memory_without_cgroups() {
    hogs_memory(Lab::without_cgroups().await).await;
}

/// Memory that processes could share is nobody's own.
#[tokio::test]
async fn hogs_shared_memory_without_cgroups() {
    let body = "extern \"C\" { fn mmap(at: *mut u8, bytes: usize, may: i32, how: i32, file: i32, from: i64) -> *mut u8; }\n\
                const BYTES: usize = 1 << 30;\n\
                unsafe {\n\
                    let all = mmap(std::ptr::null_mut(), BYTES, 3, 0x21, -1, 0);\n\
                    assert_ne!(all as isize, -1);\n\
                    for at in (0..BYTES).step_by(4096) { all.add(at).write_volatile(1); }\n\
                }\n\
                loop { std::thread::park(); }";
    let limits = Limits { memory_bytes: 512 * MIB, wall_s: 20, ..limits() };
    let run = Lab::without_cgroups().await.build_within(fixture::with_build_script(body), limits).await;
    run.assert_failed(FailureClass::OutOfMemory, "killed: used more than 512 MiB of memory");
}

const FORK_BOMB: &str = "loop { _ = std::process::Command::new(\"/bin/sleep\").arg(\"1000\").spawn(); }";

async fn forks(mut lab: Lab) {
    let limits = Limits { processes: 100, ..limits() };
    let run = lab.build_within(fixture::with_build_script(FORK_BOMB), limits).await;
    run.assert_failed(FailureClass::Build, "killed: started more than 100 processes and threads");
}

#[tokio::test]
async fn forks_in_a_cgroup() {
    if let Some(lab) = Lab::with_cgroups().await {
        forks(lab).await;
    }
}

#[tokio::test]
async fn forks_without_cgroups() {
    forks(Lab::without_cgroups().await).await;
}

async fn writes(body: &str) -> Run {
    let mut lab = Lab::new().await;
    let limits = Limits { output_bytes: 64 * MIB, ..limits() };
    lab.build_within(fixture::with_build_script(body), limits).await
}

#[tokio::test]
async fn writes_one_huge_file() {
    let run = writes(
        "let dir = std::env::var(\"OUT_DIR\").unwrap();\n\
         let mut file = std::fs::File::create(dir + \"/big\").unwrap();\n\
         loop { file.write_all(&[1; 65536]).unwrap(); }",
    )
    .await;
    run.assert_failed(FailureClass::OutputTooLarge, "killed: wrote more than 64 MiB of files");
}

#[tokio::test]
async fn writes_many_files() {
    let run = writes(
        "let dir = std::env::var(\"OUT_DIR\").unwrap();\n\
         for i in 0.. { std::fs::write(format!(\"{dir}/{i}\"), vec![1; 1 << 20]).unwrap();\n\
         std::thread::sleep(std::time::Duration::from_millis(2)); }",
    )
    .await;
    run.assert_failed(FailureClass::OutputTooLarge, "killed: wrote more than 64 MiB of files");
}

#[tokio::test]
async fn writes_where_nobody_looks() {
    let run = writes(
        "std::env::set_current_dir(std::env::var(\"OUT_DIR\").unwrap()).unwrap();\n\
         let name = \"x\".repeat(250);\n\
         for _ in 0..20 { std::fs::create_dir(&name).unwrap(); std::env::set_current_dir(&name).unwrap(); }\n\
         loop { std::thread::park(); }",
    )
    .await;
    run.assert_failed(
        FailureClass::OutputTooLarge,
        "killed: made folders that cannot be read or are too deep",
    );
}

/// A file without a name is found by no walk, but its room is missing.
#[tokio::test]
async fn leaves_the_disk_its_reserve() {
    let mut lab = Lab::new().await;
    std::sync::Arc::get_mut(&mut lab.context).unwrap().sandbox.reserve_bytes = u64::MAX;
    let run = lab.build(fixture::with_build_script("loop { std::thread::park(); }")).await;
    run.assert_failed(FailureClass::Infrastructure, "killed: the builder's disk is almost full");
}

#[tokio::test]
async fn prints_without_end() {
    let mut lab = Lab::new().await;
    // Cargo keeps a build script's output to itself; a compiler's goes through.
    let noise = format!("compile_error!(\"{}\");\n", "no end ".repeat(50_000));
    let source = fixture::demo(&[("src/main.rs", &noise)]);
    let run = lab.build_within(source, Limits { log_bytes: 100_000, ..limits() }).await;
    run.assert_failed(FailureClass::OutputTooLarge, "killed: printed more than 97.6 KiB of log");
    assert!((100_000..101_000).contains(&run.log.len()), "{}", run.log.len());
}

#[tokio::test]
async fn leaves_processes_behind() {
    let mut lab = Lab::new().await;
    // One that holds on to the pipes, and one in a session of its own.
    let source = fixture::with_build_script(
        "std::process::Command::new(\"/bin/sleep\").arg(\"4242\").spawn().unwrap();\n\
         std::process::Command::new(\"/usr/bin/setsid\").args([\"/bin/sleep\", \"4242\"])\n\
         .stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();",
    );
    let run = lab.build_within(source, Limits { wall_s: 5, ..limits() }).await;
    // Cargo waits for whoever holds its pipe: that is the crate's time.
    run.assert_failed(FailureClass::Timeout, "killed: took longer than 5 s");
    assert_no_process(b"/bin/sleep\x004242\0");
}

#[tokio::test]
async fn is_cancelled() {
    let mut lab = Lab::new().await;
    let job = lab.job(fixture::with_build_script("loop { std::thread::park(); }"));
    let run = lab.run_until(job, Duration::ZERO, compiling).await;
    assert_eq!(run.finished.outcome, Outcome::Cancelled);
}

fn compiling(event: &Event) -> bool {
    matches!(event, Event::Log { text, .. } if text.contains("Compiling"))
}

/// A compiler that says when it has begun and then takes for ever.
fn endless_macro() -> Vec<u8> {
    let manifest =
        "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[lib]\nproc-macro = true\n";
    let library = "use proc_macro::TokenStream;\n#[proc_macro] pub fn wait(_: TokenStream) -> TokenStream {\n\
                   eprintln!(\"begun\"); loop { std::thread::park(); } }";
    let files =
        [("Cargo.toml", manifest), ("src/lib.rs", library), ("src/main.rs", "demo::wait!();\nfn main() {}")];
    fixture::package("demo-0.1.0", &files)
}

#[tokio::test]
async fn ends_by_itself_when_it_is_asked_to() {
    let mut lab = Lab::new().await;
    let job = lab.job(endless_macro());
    let begun = Instant::now();
    let said = |event: &Event| matches!(event, Event::Log { text, .. } if text.contains("begun"));
    let run = lab.run_until(job, Duration::from_mins(1), said).await;
    assert_eq!(run.finished.outcome, Outcome::Cancelled);
    assert!(run.log.contains("SIGTERM"), "cargo had the time to say what ended: {}", run.log);
    assert!(begun.elapsed() < Duration::from_mins(1), "nobody waits for what has ended");
}

#[tokio::test]
async fn what_is_started_after_it_was_asked_to_end_is_asked_too() {
    let mut lab = Lab::new().await;
    let again = "std::process::Command::new(\"/bin/sh\")\
                 .args([\"-c\", \"trap '/bin/sleep 4344; exit 1' TERM; /bin/sleep 4344\"]).status().unwrap();";
    let job = lab.job(fixture::with_build_script(again));
    let begun = Instant::now();
    let run = lab.run_until(job, Duration::from_mins(1), compiling).await;
    assert_eq!(run.finished.outcome, Outcome::Cancelled);
    assert!(begun.elapsed() < Duration::from_mins(1), "nobody waits for what has ended");
}

#[tokio::test]
async fn is_killed_when_it_does_not_end_by_itself() {
    let mut lab = Lab::new().await;
    let stubborn = "std::process::Command::new(\"/bin/sh\").args([\"-c\", \"trap '' TERM; /bin/sleep 4343\"]).status().unwrap();";
    let job = lab.job(fixture::with_build_script(stubborn));
    let run = lab.run_until(job, Duration::from_secs(1), compiling).await;
    assert_eq!(run.finished.outcome, Outcome::Cancelled);
    assert_no_process(b"/bin/sleep\x004343\0");
}

fn assert_no_process(command: &[u8]) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let of_process = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert_ne!(of_process, command, "a process outlived its sandbox");
    }
}

#[tokio::test]
async fn the_owners_cap_counts() {
    let mut lab = Lab::new().await;
    let context = std::sync::Arc::get_mut(&mut lab.context).unwrap();
    context.caps.wall_s = Some(2);
    let run = lab.build(fixture::with_build_script("loop { std::thread::park(); }")).await;
    run.assert_failed(FailureClass::Timeout, "killed: took longer than 2 s");
}

/// A procedural macro runs in the compiler and prints where cargo reads: here two binaries that there are not.
#[tokio::test]
async fn a_macro_that_speaks_for_cargo_gets_no_long_message() {
    const BEFORE: &str = r#"{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":""#;
    let print = |word: &str, times: usize| {
        format!(r###"println!("{{}}{{}}{{}}", r##"{BEFORE}"##, "{word}".repeat({times}), r##""}}"##);"###)
    };
    let manifest =
        "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[lib]\nproc-macro = true\n";
    let library = format!(
        "use proc_macro::TokenStream;\n#[proc_macro] pub fn speak(_: TokenStream) -> TokenStream {{\n{}\n{}\n\
         TokenStream::new() }}",
        print("huge", 225_000),
        print("long", 1_000),
    );
    let files = [
        ("Cargo.toml", manifest),
        ("src/lib.rs", library.as_str()),
        ("src/main.rs", "demo::speak!();\nfn main() {}"),
    ];
    let run = Lab::new().await.build(fixture::package("demo-0.1.0", &files)).await;
    run.assert_failed(FailureClass::Build, "cargo announced a binary in an odd place: \"longlong");
    let Outcome::Failed { message, .. } = &run.finished.outcome else { unreachable!() };
    assert_eq!(message.chars().count(), 2_000);
    assert!(run.log.contains("hugehuge"), "what is no path is output");
}

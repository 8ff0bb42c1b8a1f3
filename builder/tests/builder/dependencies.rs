//! Dependencies from a registry on loopback that stands in for cargo's default one.

use crate::{fixture, lab::Lab};
use cratemill_protocol::{FailureClass, Sha256Hex, builder::Job};

const MAIN: &str = "fn main() { println!(\"{}\", helper::answer()); }\n";

fn manifest(dependency: &str) -> String {
    format!(
        "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n{dependency} = \"1\"\n"
    )
}

/// A registry with one library, and a job that uses it.
fn registry_job(lab: &mut Lab, files: &[(&str, &str)]) -> Job {
    let helper = fixture::package(
        "helper-1.0.0",
        &[
            ("Cargo.toml", "[package]\nname = \"helper\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
            ("src/lib.rs", "pub fn answer() -> u8 { 42 }\n"),
        ],
    );
    let entry = serde_json::json!({
        "name": "helper", "vers": "1.0.0", "deps": [], "features": {}, "yanked": false,
        "cksum": Sha256Hex::of(&helper).to_string(),
    });
    let service = &lab.service;
    let dl = format!("{}/files/dl/{{crate}}-{{version}}.crate", service.url);
    service.serve("index/config.json", serde_json::json!({ "dl": dl }).to_string().into_bytes());
    service.serve("index/he/lp/helper", format!("{entry}\n").into_bytes());
    service.serve("dl/helper-1.0.0.crate", helper);
    let index = Some(format!("sparse+{}/files/index", service.url));
    Job { index, ..lab.job(fixture::package("demo-0.1.0", files)) }
}

#[tokio::test]
async fn come_from_the_index_of_the_job_and_only_while_fetching() {
    let mut lab = Lab::new().await;
    let job = registry_job(&mut lab, &[("Cargo.toml", &manifest("helper")), ("src/main.rs", MAIN)]);
    lab.run(job.clone()).await.assert_succeeded();
    let downloads = |lab: &Lab| {
        let store = lab.service.store.lock().unwrap();
        let of_helper: Vec<_> =
            store.seen.iter().filter(|(path, _)| path.starts_with("dl/")).cloned().collect();
        assert!(of_helper.iter().all(|(_, token)| token.is_none()), "cargo knows no token");
        of_helper.len()
    };
    assert_eq!(downloads(&lab), 1);
    lab.run(job).await.assert_succeeded();
    assert_eq!(downloads(&lab), 1, "the second job finds it in the cache");
}

#[tokio::test]
async fn a_lock_file_that_cannot_be_used_is_made_anew() {
    let mut lab = Lab::new().await;
    let lock = "version = 4\n[[package]]\nname = \"demo\"\nversion = \"0.1.0\"\ndependencies = [\"gone\"]\n";
    let files = [("Cargo.toml", &*manifest("helper")), ("src/main.rs", MAIN), ("Cargo.lock", lock)];
    let job = registry_job(&mut lab, &files);
    let run = lab.run(job).await;
    run.assert_succeeded();
    assert!(run.log.contains("Cargo.lock cannot be used"), "{}", run.log);
}

#[tokio::test]
async fn one_that_does_not_exist_is_the_crates_fault() {
    let mut lab = Lab::new().await;
    let job =
        registry_job(&mut lab, &[("Cargo.toml", &manifest("nowhere")), ("src/main.rs", "fn main() {}")]);
    lab.run(job).await.assert_failed(FailureClass::Build, "dependencies cannot be resolved");
}

#[tokio::test]
async fn a_registry_that_is_down_is_not() {
    let mut lab = Lab::new().await;
    let mut job = registry_job(&mut lab, &[("Cargo.toml", &manifest("helper")), ("src/main.rs", MAIN)]);
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    job.index = Some(format!("sparse+http://127.0.0.1:{port}/"));
    lab.run(job).await.assert_failed(FailureClass::Infrastructure, "dependencies cannot be downloaded");
}

#[tokio::test]
async fn a_tampered_one_is_refused() {
    let mut lab = Lab::new().await;
    let job = registry_job(&mut lab, &[("Cargo.toml", &manifest("helper")), ("src/main.rs", MAIN)]);
    lab.service.serve("dl/helper-1.0.0.crate", fixture::demo(&[fixture::HELLO]));
    let run = lab.run(job).await;
    run.assert_failed(FailureClass::Build, "dependencies cannot be resolved");
    assert!(run.log.contains("checksum"), "{}", run.log);
}

#[tokio::test]
async fn a_manifest_that_sends_cargo_elsewhere_is_refused_before_cargo_runs() {
    let mut lab = Lab::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let manifest = manifest("helper") + &format!("[dependencies.evil]\ngit = \"http://{address}/evil\"\n");
    let job = registry_job(&mut lab, &[("Cargo.toml", &manifest), ("src/main.rs", MAIN)]);
    lab.run(job).await.assert_failed(FailureClass::Build, "\"evil\" is from a git repository");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

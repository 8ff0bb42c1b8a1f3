//! What good crates give.

use crate::{fixture, lab::Lab};
use cratemill_protocol::{
    FailureClass, Features, Kind, Outcome, Stage, Target, builder::Job, manifest::Manifest,
};
use flate2::read::GzDecoder;
use std::{collections::BTreeMap, io::Read, process::Command};

fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(bytes));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

#[tokio::test]
async fn a_binary_is_built_packed_stored_and_signed_and_again_the_same() {
    let mut lab = Lab::new().await;
    let source = fixture::demo(&[
        fixture::HELLO,
        ("LICENSE-MIT", "free"),
        ("readme.md", "read"),
        ("src/bin/second.rs", "fn main() {}"),
        ("secrets.txt", "not packed"),
    ]);
    let run = lab.build(source.clone()).await;
    run.assert_succeeded();
    assert_eq!(run.stages, [Stage::Fetch, Stage::Build, Stage::Package, Stage::Upload]);
    assert!(run.log.contains("Compiling demo v0.1.0 (/source/demo-0.1.0)"), "{}", run.log);
    let Outcome::Succeeded { timings } = run.finished.outcome else { unreachable!() };
    assert!(timings.cargo_ms > 0 && timings.cargo_ms <= timings.fetch_ms + timings.build_ms, "{timings:?}");

    let target = lab.context.sandbox.toolchain.host.clone();
    let name = format!("demo-{target}-v0.1.0.tar.gz");
    let tarball = lab.service.uploaded(&name).unwrap();
    let key = lab.context.identity.public();
    let manifest = Manifest::verify(
        run.finished.manifest.as_deref().unwrap(),
        run.finished.signature.as_deref().unwrap(),
        key,
    )
    .unwrap();
    assert_eq!(manifest.artifacts[0].sha256, cratemill_protocol::Sha256Hex::of(&tarball));
    assert_eq!(manifest.artifacts[0].size, tarball.len() as u64);
    assert!(manifest.toolchain.starts_with("rustc "), "{}", manifest.toolchain);

    let files = unpack(&tarball);
    let root = format!("demo-{target}-v0.1.0/");
    let names: Vec<_> = files.keys().map(|name| name.strip_prefix(&root).unwrap()).collect();
    assert_eq!(names, ["", "LICENSE-MIT", "demo", "readme.md", "second"]);
    let binary = lab.folder.path().join("demo");
    std::fs::write(&binary, &files[&format!("{root}demo")]).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&binary, mode).unwrap();
    assert_eq!(Command::new(&binary).output().unwrap().stdout, b"hello\n");

    lab.build(source).await.assert_succeeded();
    assert_eq!(lab.service.uploaded(&name).unwrap(), tarball, "two builds give the same bytes");
}

#[tokio::test]
async fn metadata_is_the_same_on_every_builder() {
    let (mut one, mut two) = (Lab::new().await, Lab::new().await);
    let mut texts = Vec::new();
    for lab in [&mut one, &mut two] {
        let source = fixture::demo(&[fixture::HELLO]);
        let job = Job { kind: Kind::Metadata, target: Target::any(), ..lab.job(source) };
        let run = lab.run(job).await;
        run.assert_succeeded();
        assert_eq!(run.stages, [Stage::Fetch, Stage::Build, Stage::Package, Stage::Upload]);
        texts.push(lab.service.uploaded("demo-0.1.0.metadata.json").unwrap());
    }
    assert_eq!(texts[0], texts[1]);
    let metadata: serde_json::Value = serde_json::from_slice(&texts[0]).unwrap();
    assert_eq!(metadata["packages"][0]["targets"][0]["kind"][0], "bin");
    assert_eq!(metadata["packages"][0]["manifest_path"], "/source/demo-0.1.0/Cargo.toml");
}

#[tokio::test]
async fn features_choose_what_is_built() {
    let mut lab = Lab::new().await;
    let manifest = "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
                    [features]\ndefault = [\"broken\"]\nbroken = []\nextra = []\n";
    let main = "#[cfg(feature = \"broken\")] compile_error!(\"default is on\");\n\
                #[cfg(not(feature = \"extra\"))] compile_error!(\"extra is off\");\nfn main() {}\n";
    let source = fixture::package("demo-0.1.0", &[("Cargo.toml", manifest), ("src/main.rs", main)]);
    let features: Features = "no-default,extra".parse().unwrap();
    let job = Job { features, ..lab.job(source.clone()) };
    lab.run(job).await.assert_succeeded();
    lab.build(source).await.assert_failed(FailureClass::Build, "error: default is on");
}

#[tokio::test]
async fn a_library_has_no_tarball() {
    let mut lab = Lab::new().await;
    let run = lab.build(fixture::demo(&[("src/lib.rs", "")])).await;
    run.assert_failed(FailureClass::Build, "the crate has no binaries");
}

#[tokio::test]
async fn an_upload_outlives_a_node_that_restarts_and_a_refusal_is_final() {
    let mut lab = Lab::new().await;
    let answers = [503, 500].map(|code| axum::http::StatusCode::from_u16(code).unwrap());
    lab.service.store.lock().unwrap().upload_answers.extend(answers);
    lab.build(fixture::demo(&[fixture::HELLO])).await.assert_succeeded();
    lab.service.store.lock().unwrap().upload_answers.push_back(axum::http::StatusCode::CONFLICT);
    let run = lab.build(fixture::demo(&[fixture::HELLO])).await;
    run.assert_failed(FailureClass::Infrastructure, "the upload was refused: 409");
    lab.service.store.lock().unwrap().upload_answers.push_back(axum::http::StatusCode::PAYLOAD_TOO_LARGE);
    let run = lab.build(fixture::demo(&[fixture::HELLO])).await;
    run.assert_failed(FailureClass::OutputTooLarge, "the service takes no artifact");
    let store = lab.service.store.lock().unwrap();
    assert!(
        store.seen.iter().all(|(_, token)| token.as_deref() == Some("Bearer secret")),
        "{:?}",
        store.seen
    );
}

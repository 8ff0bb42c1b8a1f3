//! Hostile `.crate` files.

use crate::{
    fixture::{self, Archive},
    lab::Lab,
};
use cratemill_protocol::{FailureClass, Limits, Sha256Hex, builder::Job};
use tar::EntryType;

const MANIFEST: &[u8] = b"[package]\nname = \"demo\"\nversion = \"0.1.0\"\n";

/// The archive is refused with these words, and `path` was not written.
async fn refused(make: impl FnOnce(&mut Archive, &str), words: &str) {
    let mut lab = Lab::new().await;
    let outside = lab.folder.path().join("outside").display().to_string();
    let mut archive = Archive::default();
    archive.entry(EntryType::Regular, "demo-0.1.0/Cargo.toml", MANIFEST);
    make(&mut archive, &outside);
    lab.build(archive.finish()).await.assert_failed(FailureClass::Build, words);
    assert!(!std::path::Path::new(&outside).exists());
}

#[tokio::test]
async fn absolute_path() {
    refused(|archive, outside| _ = archive.entry(EntryType::Regular, outside, b"x"), "an absolute path")
        .await;
}

#[tokio::test]
async fn upward_path() {
    let path = "demo-0.1.0/../../../../../../outside";
    refused(|archive, _| _ = archive.entry(EntryType::Regular, path, b"x"), "a path that leads upwards")
        .await;
}

#[tokio::test]
async fn another_folder() {
    refused(
        |archive, _| _ = archive.entry(EntryType::Regular, "demo-0.1.1/x", b"x"),
        "a path outside the crate's folder",
    )
    .await;
}

#[tokio::test]
async fn links_and_devices() {
    for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Block, EntryType::Fifo] {
        refused(
            |archive, outside| {
                archive.linking(kind, "demo-0.1.0/src", outside, b"");
                archive.entry(EntryType::Regular, "demo-0.1.0/src/main.rs", b"fn main() {}");
            },
            "neither a file nor a folder",
        )
        .await;
    }
}

#[tokio::test]
async fn the_same_path_twice() {
    refused(
        |archive, _| _ = archive.entry(EntryType::Regular, "demo-0.1.0/Cargo.toml", b"x"),
        "the same path twice",
    )
    .await;
}

#[tokio::test]
async fn a_bomb() {
    let mut lab = Lab::new().await;
    let mut archive = Archive::default();
    archive.entry(EntryType::Regular, "demo-0.1.0/bomb", &vec![0; 64 << 20]);
    let source = archive.finish();
    assert!(source.len() < 1 << 20, "{}", source.len());
    let limits = Limits { unpacked_bytes: 10 << 20, ..Limits::default() };
    let run = lab.build_within(source, limits).await;
    run.assert_failed(FailureClass::OutputTooLarge, "unpacks to more than 10485760 bytes");
}

#[tokio::test]
async fn too_many_files() {
    let mut lab = Lab::new().await;
    let mut archive = Archive::default();
    // The same folder over and over: entries count, and making fifty thousand would take a minute.
    for _ in 0..50_001 {
        archive.entry(EntryType::Directory, "demo-0.1.0/folder", b"");
    }
    lab.build(archive.finish()).await.assert_failed(FailureClass::OutputTooLarge, "more than 50000 files");
}

#[tokio::test]
async fn not_an_archive_and_cut_off() {
    let mut lab = Lab::new().await;
    lab.build(b"not gzip".to_vec()).await.assert_failed(FailureClass::Build, "not a readable .tar.gz");
    let mut cut = fixture::demo(&[fixture::HELLO]);
    cut.truncate(cut.len() / 2);
    lab.build(cut).await.assert_failed(FailureClass::Build, "not a readable .tar.gz");
    lab.build(fixture::package("demo-0.1.0", &[("x", "")]))
        .await
        .assert_failed(FailureClass::Build, "no Cargo.toml");
}

#[tokio::test]
async fn wrong_checksum_too_large_and_missing() {
    let mut lab = Lab::new().await;
    let source = fixture::demo(&[fixture::HELLO]);
    let job = Job { sha256: Sha256Hex::of(b"something else"), ..lab.job(source.clone()) };
    lab.run(job).await.assert_failed(FailureClass::Build, "wrong checksum: the registry's index says");
    let run = lab.build_within(source.clone(), Limits { source_bytes: 10, ..Limits::default() }).await;
    run.assert_failed(FailureClass::OutputTooLarge, "the crate file is larger than 10 B");
    let mut job = lab.job(source);
    job.source = job.source.replace("demo.crate", "none.crate");
    lab.run(job).await.assert_failed(FailureClass::Build, "the registry does not have the crate's file");
}

#[tokio::test]
async fn a_version_that_is_a_path() {
    let mut lab = Lab::new().await;
    let job = Job { version: "0.1.0/../..".into(), ..lab.job(fixture::demo(&[])) };
    lab.run(job).await.assert_failed(FailureClass::Build, "is not a usable folder name");
}

//! Random and half-honest archives: an error or a result, never a panic, never a file outside.

use super::unpack::unpack;
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use std::{io::Write, path::Path};

const MAX_BYTES: u64 = 1 << 20;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Unpacks and checks that only the crate's folder came to be.
fn try_unpack(archive: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("into");
    std::fs::create_dir(&into).unwrap();
    // Whether it works is not the question here.
    _ = unpack(archive, "demo-1.0.0", &into, MAX_BYTES);
    let names = |path: &Path| -> Vec<_> {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names(dir.path()), ["into"]);
    assert!(names(&into).iter().all(|name| name == "demo-1.0.0"));
}

fn header(kind: u8, path: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let bytes = header.as_mut_bytes();
    let length = path.len().min(100);
    bytes[..length].copy_from_slice(&path.as_bytes()[..length]);
    bytes[156] = kind;
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        try_unpack(&bytes);
        try_unpack(&gzip(&bytes));
    }

    #[test]
    fn random_entries(
        entries in prop::collection::vec((
            prop::sample::select(b"0125LKxgS7D\0".to_vec()),
            prop_oneof![
                "demo-1.0.0/[a-c]{1,2}(/[a-c]){0,2}", "(\\.\\./){1,3}x", "/[a-z/]{1,9}", "demo-1.0.0/(\\.\\./){1,3}x",
                "[ -~]{0,100}",
            ],
            0_u64..3_000,
            prop::collection::vec(any::<u8>(), 0..600),
        ), 0..8),
    ) {
        let mut archive = Vec::new();
        for (kind, path, size, content) in entries {
            archive.extend(header(kind, &path, size));
            archive.extend(&content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        try_unpack(&gzip(&archive));
    }
}

#[test]
fn long_names_work_and_modes_are_plain() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let long = format!("demo-1.0.0/{}/file", "long/".repeat(30).trim_end_matches('/'));
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o6777);
    archive.append_data(&mut header, &long, &b"hi"[..]).unwrap();
    let archive = archive.into_inner().unwrap().finish().unwrap();
    let unpacked = unpack(&archive[..], "demo-1.0.0", dir.path(), MAX_BYTES).unwrap();
    assert_eq!((unpacked.files, unpacked.bytes), (1, 2));
    let metadata = std::fs::metadata(dir.path().join(long)).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
}

/// A class of failure that is tried again is for our own faults; these are the same at every try.
#[test]
fn paths_that_cannot_be_are_the_archives_fault() {
    use super::unpack::Error;
    let long = format!("demo-1.0.0/{}", "x".repeat(300));
    for (paths, why) in [
        (&[(b'0', "demo-1.0.0/a"), (b'0', "demo-1.0.0/a/b")][..], "the same path twice"),
        (&[(b'0', "demo-1.0.0/a"), (b'0', "demo-1.0.0/a/b/c")], "a path below a file"),
        (&[(b'0', "demo-1.0.0/a"), (b'5', "demo-1.0.0/a")], "the same path twice"),
        (&[(b'5', "demo-1.0.0/a"), (b'0', "demo-1.0.0/a")], "the same path twice"),
        (&[(b'L', &long)], "a name that no file can have"),
    ] {
        let mut archive = Vec::new();
        for (kind, path) in paths {
            if *kind == b'L' {
                archive.extend(header(b'L', "long", path.len() as u64));
                archive.extend(path.as_bytes());
                archive.resize(archive.len().next_multiple_of(512), 0);
                archive.extend(header(b'0', "short", 0));
            } else {
                archive.extend(header(*kind, path, 0));
            }
        }
        archive.resize(archive.len() + 1_024, 0);
        let dir = tempfile::tempdir().unwrap();
        match unpack(&gzip(&archive)[..], "demo-1.0.0", dir.path(), MAX_BYTES) {
            Err(Error::Hostile { why: said, .. }) => assert_eq!(said, why, "{paths:?}"),
            other => panic!("{paths:?}: {other:?}"),
        }
    }
}

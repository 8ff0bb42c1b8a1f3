//! Packs binaries into a tarball: the same files give the same bytes, on any builder and at any time.

use super::failure::{Failure, size};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};
use tar::{Builder, EntryType, Header};

/// Beside the binaries, in any case and with any ending.
const DOCUMENTS: [&str; 6] = ["license", "licence", "copying", "unlicense", "notice", "readme"];
/// Larger ones are something else.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// "Unknown": the default would tell on which system it was packed.
const GZIP_SYSTEM: u8 = 255;

/// One file of the tarball.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) executable: bool,
}

/// The binaries that cargo announced, as files of the host. A build can announce and leave there what it likes, so only
/// regular files directly in the release folder count, and no link leads there.
pub(super) fn binaries(
    announced: &[String],
    inside: &str,
    target_dir: &Path,
    target: &str,
) -> Result<Vec<Item>, Failure> {
    let folder = target_dir.canonicalize()?.join(target).join("release");
    let mut items = Vec::new();
    for path in announced {
        let name =
            path.strip_prefix(&format!("{inside}/{target}/release/")).filter(|name| is_file_name(name));
        let name = name
            .ok_or_else(|| Failure::build(format!("cargo announced a binary in an odd place: {path:?}")))?;
        let path = folder.join(name);
        let is_there = path.canonicalize().is_ok_and(|real| real == path)
            && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !is_there {
            return Err(Failure::build(format!(
                "the binary {name:?} is not a regular file where cargo put it"
            )));
        }
        items.push(Item { name: name.to_owned(), path, executable: true });
    }
    items.sort();
    items.dedup();
    Ok(items)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\0'])
}

/// Licences and readme at the crate's root.
pub(super) fn documents(source: &Path) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let lower = name.to_ascii_lowercase();
        let metadata = entry.metadata()?;
        let fits = metadata.is_file() && metadata.len() <= MAX_DOCUMENT_BYTES;
        if fits && DOCUMENTS.iter().any(|start| lower.starts_with(start)) {
            items.push(Item { name, path: entry.path(), executable: false });
        }
    }
    Ok(items)
}

/// Writes `folder/` with all items, sorted, to `output`.
pub(super) fn tarball(
    folder: &str,
    mut items: Vec<Item>,
    output: &Path,
    max_bytes: u64,
) -> Result<(), Failure> {
    items.sort();
    items.dedup_by(|a, b| a.name == b.name);
    let write = || -> io::Result<u64> {
        let gzip = GzBuilder::new().mtime(0).operating_system(GZIP_SYSTEM);
        let file = io::BufWriter::new(File::create_new(output)?);
        let encoder: GzEncoder<_> = gzip.write(file, Compression::default());
        let mut archive = Builder::new(encoder);
        let mut header = header(EntryType::Directory, 0, 0o755);
        archive.append_data(&mut header, format!("{folder}/"), io::empty())?;
        for item in &items {
            append(&mut archive, folder, item)?;
        }
        let mut file = archive.into_inner()?.finish()?;
        file.flush()?;
        Ok(file.get_ref().metadata()?.len())
    };
    if write()? > max_bytes {
        return Err(Failure::output_too_large(format!("the tarball is larger than {}", size(max_bytes))));
    }
    Ok(())
}

fn append(archive: &mut Builder<impl Write>, folder: &str, item: &Item) -> io::Result<()> {
    let file = File::open(&item.path)?;
    let mode = if item.executable { 0o755 } else { 0o644 };
    let mut header = header(EntryType::Regular, file.metadata()?.len(), mode);
    archive.append_data(&mut header, format!("{folder}/{}", item.name), file)
}

/// Fixed times and owners.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;

    fn item(dir: &Path, name: &str) -> Item {
        let path = dir.join(name);
        fs::write(&path, name.repeat(1_000)).unwrap();
        Item { name: name.into(), path, executable: name == "bin" }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let items = vec![item(dir.path(), "bin"), item(dir.path(), "README.md"), item(dir.path(), "LICENSE")];
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        tarball("x-t-v1", items.clone(), &one, u64::MAX).unwrap();
        for item in &items {
            File::open(&item.path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        }
        tarball("x-t-v1", items.into_iter().rev().collect(), &two, u64::MAX).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(one).unwrap()));
        let listed: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!(
                    (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()),
                    (0, 0, 0)
                );
                format!("{} {:o}", entry.path().unwrap().display(), header.mode().unwrap())
            })
            .collect();
        assert_eq!(listed, ["x-t-v1/ 755", "x-t-v1/LICENSE 644", "x-t-v1/README.md 644", "x-t-v1/bin 755"]);
    }

    #[test]
    fn a_build_cannot_have_us_pack_files_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("t/release");
        fs::create_dir_all(&release).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", release.join("link")).unwrap();
        fs::create_dir(release.join("folder")).unwrap();
        fs::write(release.join("good"), "x").unwrap();
        let find = |path: &str| binaries(&[path.to_owned()], "/target", dir.path(), "t");
        assert_eq!(find("/target/t/release/good").unwrap().len(), 1);
        for bad in [
            "/target/t/release/link",
            "/target/t/release/folder",
            "/target/t/release/none",
            "/target/t/release/../release/good",
            "/target/t/release/",
            "/target/t/release/..",
            "/etc/passwd",
        ] {
            assert!(find(bad).is_err(), "{bad}");
        }
        // The folder itself may be a way out.
        fs::remove_dir_all(&release).unwrap();
        std::os::unix::fs::symlink("/etc", &release).unwrap();
        assert!(find("/target/t/release/passwd").is_err());
    }
}

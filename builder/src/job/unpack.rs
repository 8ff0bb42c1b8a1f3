//! Unpacks a `.crate` file that anybody may have made.
//!
//! Only folders and regular files, all below `{crate}-{version}/`, each once, and no more of them than the job may have:
//! no links, no devices, no absolute paths, no `..`, no set-uid bits, no bombs.

use flate2::read::GzDecoder;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Entry, EntryType, PaxExtensions};

/// The largest crates of the public registry have some ten thousand files.
const MAX_FILES: u64 = 50_000;
/// Longer paths cannot be opened anyway.
const MAX_PATH_BYTES: u64 = 4_096;
/// A path deeper than this makes tools slow that walk it.
const MAX_DEPTH: usize = 64;
/// A tar archive's headers and padding, per file and at its end, on top of the content.
const BYTES_PER_ENTRY: u64 = 1_536;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the crate file is not a readable .tar.gz: {0}")]
    Malformed(io::Error),
    #[error("the crate file holds {path:?}: {why}")]
    Hostile { path: String, why: &'static str },
    #[error("the crate file unpacks to more than {0} bytes")]
    TooLarge(u64),
    #[error("the crate file holds more than {MAX_FILES} files")]
    TooMany,
    #[error("cannot write what the crate file holds: {0}")]
    Disk(io::Error),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Unpacks into `into`, which holds the folder `root` afterwards.
pub(super) fn unpack(reader: impl Read, root: &str, into: &Path, max_bytes: u64) -> Result<Unpacked, Error> {
    // Also bounds what is read of entries that we refuse or skip.
    let decoded = GzDecoder::new(reader).take(max_bytes.saturating_add(MAX_FILES * BYTES_PER_ENTRY));
    let mut archive = Archive::new(decoded);
    let mut unpacked = Unpacked::default();
    // Long names come as entries of their own in front; read by us, they are bounded.
    let mut long_name = None;
    for entry in archive.entries().map_err(Error::Malformed)?.raw(true) {
        let mut entry = entry.map_err(Error::Malformed)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => long_name = Some(read_name(&mut entry)?),
            EntryType::XHeader => long_name = read_pax_path(&mut entry)?.or(long_name),
            EntryType::XGlobalHeader => drop(read_bounded(&mut entry)?),
            kind => {
                let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let path = safe_path(&name, root)?;
                unpacked.files += 1;
                if unpacked.files > MAX_FILES {
                    return Err(Error::TooMany);
                }
                match kind {
                    EntryType::Directory => make_folder(into, &path)?,
                    EntryType::Regular | EntryType::Continuous => {
                        unpacked.bytes += entry.size();
                        if unpacked.bytes > max_bytes {
                            return Err(Error::TooLarge(max_bytes));
                        }
                        write_file(&mut entry, into, &path)?;
                    }
                    _ => return Err(hostile(&name, "neither a file nor a folder")),
                }
            }
        }
    }
    Ok(unpacked)
}

fn hostile(name: &[u8], why: &'static str) -> Error {
    Error::Hostile { path: String::from_utf8_lossy(name).chars().take(200).collect(), why }
}

fn read_bounded(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = entry.take(MAX_PATH_BYTES + 1).read_to_end(&mut bytes).map_err(Error::Malformed)?;
    if read as u64 > MAX_PATH_BYTES { Err(hostile(b"", "a name that is too long")) } else { Ok(bytes) }
}

fn read_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Error> {
    let mut name = read_bounded(entry)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    Ok(name)
}

fn read_pax_path(entry: &mut Entry<'_, impl Read>) -> Result<Option<Vec<u8>>, Error> {
    let bytes = read_bounded(entry)?;
    let mut path = None;
    for extension in PaxExtensions::new(&bytes) {
        let extension = extension.map_err(Error::Malformed)?;
        match extension.key_bytes() {
            b"path" => path = Some(extension.value_bytes().to_vec()),
            // It would change where the next header is read.
            b"size" => return Err(hostile(b"", "a size in an extended header")),
            _ => {}
        }
    }
    Ok(path)
}

/// The path below `into`, if it stays below `root`.
fn safe_path(name: &[u8], root: &str) -> Result<PathBuf, Error> {
    let text = str::from_utf8(name).map_err(|_| hostile(name, "a path that is not UTF-8"))?;
    if text.contains(['\0', '\\']) {
        return Err(hostile(name, "a path with a zero byte or a backslash"));
    }
    let path = Path::new(text);
    if path.is_absolute() {
        return Err(hostile(name, "an absolute path"));
    }
    let mut components = path.components().filter(|component| *component != Component::CurDir);
    if components.next() != Some(Component::Normal(root.as_ref())) {
        return Err(hostile(name, "a path outside the crate's folder"));
    }
    let mut safe = PathBuf::from(root);
    for component in components {
        match component {
            Component::Normal(part) => safe.push(part),
            _ => return Err(hostile(name, "a path that leads upwards")),
        }
    }
    if safe.components().count() > MAX_DEPTH {
        return Err(hostile(name, "a path that is too deep"));
    }
    Ok(safe)
}

/// Tells what is wrong with the path, which is the crate's fault, from what is wrong with our disk.
fn unwritable(path: &Path, error: io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::IsADirectory => "the same path twice",
        io::ErrorKind::NotADirectory => "a path below a file",
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => "a name that no file can have",
        _ => return Error::Disk(error),
    };
    hostile(path.as_os_str().as_encoded_bytes(), why)
}

fn make_folder(into: &Path, path: &Path) -> Result<(), Error> {
    fs::create_dir_all(into.join(path)).map_err(|error| unwritable(path, error))
}

fn write_file(entry: &mut Entry<'_, impl Read>, into: &Path, path: &Path) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        make_folder(into, folder)?;
    }
    let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
    let mode = if executable { 0o755 } else { 0o644 };
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(into.join(path));
    copy(entry, &mut file.map_err(|error| unwritable(path, error))?)
}

/// Tells a broken archive, which is the crate's, from a full disk, which is ours.
fn copy(entry: &mut Entry<'_, impl Read>, file: &mut File) -> Result<(), Error> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = entry.size();
    loop {
        let read = entry.read(&mut buffer).map_err(Error::Malformed)?;
        if read == 0 {
            let short = || Error::Malformed(io::ErrorKind::UnexpectedEof.into());
            return if left == 0 { Ok(()) } else { Err(short()) };
        }
        left = left.saturating_sub(read as u64);
        file.write_all(&buffer[..read]).map_err(Error::Disk)?;
    }
}

//! Where a crate's manifests would send cargo in the phase that has a network.
//!
//! Cargo asks whatever server a dependency names, from inside the owner's network. A registry strips such things from
//! what it publishes, so a crate that still names a git repository, another registry, a patch or a workspace is refused.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};
use toml::{Table, Value};

/// A manifest is some kilobytes; generated ones with thousands of features stay below this.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Crates inside a crate, by path: more than a handful is none that a registry published.
const MAX_MANIFESTS: usize = 100;

const DEPENDENCIES: [&str; 5] =
    ["dependencies", "dev-dependencies", "build-dependencies", "dev_dependencies", "build_dependencies"];

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("Cargo.toml cannot be read: {0}")]
    Malformed(String),
    #[error("the dependency {name:?} is from {from}: only the registry's own are fetched")]
    Foreign { name: String, from: &'static str },
    #[error("Cargo.toml has a [{0}] section, which no published crate has")]
    Section(&'static str),
    #[error("cannot read Cargo.toml: {0}")]
    Disk(io::Error),
}

/// Checks the manifest in `root` and those it leads to by path.
pub(super) fn check(root: &Path, index: Option<&str>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(folder) = todo.pop() {
        if !seen.insert(folder.clone()) {
            continue;
        }
        if seen.len() > MAX_MANIFESTS {
            return Err(Error::Malformed(format!("it leads to more than {MAX_MANIFESTS} others")));
        }
        let Some(manifest) = read(&root.join(&folder).join("Cargo.toml"))? else { continue };
        check_sections(&manifest)?;
        for (name, dependency) in dependencies(&manifest) {
            if let Some(path) = check_dependency(name, dependency, index)? {
                todo.push(inside(&folder, path).ok_or_else(|| foreign(name, "a path outside the crate"))?);
            }
        }
    }
    Ok(())
}

/// None if there is no such file: cargo will say so.
fn read(path: &Path) -> Result<Option<Table>, Error> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(unreadable)?,
    };
    if metadata.len() > MAX_MANIFEST_BYTES {
        return Err(Error::Malformed(format!("it is larger than {MAX_MANIFEST_BYTES} bytes")));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Malformed("it is not UTF-8".into()))?;
    text.parse().map(Some).map_err(|error: toml::de::Error| Error::Malformed(error.message().to_owned()))
}

/// Tells a path that leads to no file, which is the crate's fault, from what is wrong with our disk.
fn unreadable(error: io::Error) -> Error {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory};
    match error.kind() {
        NotADirectory | IsADirectory | InvalidFilename | InvalidInput => Error::Malformed(error.to_string()),
        _ => Error::Disk(error),
    }
}

fn check_sections(manifest: &Table) -> Result<(), Error> {
    let has = |table: &Table, key| match table.get(key) {
        Some(Value::Table(table)) => !table.is_empty(),
        Some(Value::Array(array)) => !array.is_empty(),
        value => value.is_some(),
    };
    for section in ["patch", "replace"] {
        if has(manifest, section) {
            return Err(Error::Section(section));
        }
    }
    let table = |key| manifest.get(key).and_then(Value::as_table);
    if table("workspace").is_some_and(|workspace| has(workspace, "members"))
        || ["package", "project"].into_iter().filter_map(table).any(|package| has(package, "workspace"))
    {
        return Err(Error::Section("workspace"));
    }
    Ok(())
}

/// All dependencies of a manifest: plain, for some targets, and to be inherited.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&str, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let workspace = manifest.get("workspace");
    let tables = targets.chain(workspace).filter_map(Value::as_table).chain([manifest]);
    tables
        .flat_map(|table| DEPENDENCIES.iter().filter_map(|key| table.get(*key)))
        .filter_map(Value::as_table)
        .flatten()
        .map(|(name, dependency)| (name.as_str(), dependency))
}

/// The path of a dependency that has one.
fn check_dependency<'a>(
    name: &str,
    dependency: &'a Value,
    index: Option<&str>,
) -> Result<Option<&'a str>, Error> {
    let text = |key| dependency.get(key).and_then(Value::as_str);
    if dependency.get("git").is_some() {
        return Err(foreign(name, "a git repository"));
    }
    if let Some(other) = text("registry-index")
        && Some(other.trim_end_matches('/')) != index.map(|index| index.trim_end_matches('/'))
    {
        return Err(foreign(name, "another registry"));
    }
    Ok(text("path"))
}

fn foreign(name: &str, from: &'static str) -> Error {
    Error::Foreign { name: name.chars().take(100).collect(), from }
}

/// `folder/path`, if that is below the crate's root.
fn inside(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            Component::ParentDir if inside.pop() => {}
            _ => return None,
        }
    }
    Some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(files: &[(&str, &str)]) -> Result<(), Error> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        check(dir.path(), Some("sparse+https://index.test/"))
    }

    #[test]
    fn published_manifests_pass() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\nb = { version = \"1\", optional = true }\n\
                        c = { version = \"1\", registry-index = \"sparse+https://index.test\" }\n\
                        [dependencies.d]\nversion = \"1\"\n[target.'cfg(unix)'.dependencies.e]\nversion = \"1\"\n\
                        [workspace]\n[patch]\n";
        check_text(&[("Cargo.toml", manifest)]).unwrap();
        check_text(&[("Cargo.toml", "[dependencies]\na = { path = \"a\" }\n"), ("a/Cargo.toml", "")])
            .unwrap();
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for manifest in [
            "[dependencies]\na = { git = \"http://10.0.0.1/a\" }",
            "[dependencies.a]\nversion = \"1\"\nregistry-index = \"sparse+http://10.0.0.1/\"",
            "[target.'cfg(unix)'.build-dependencies.a]\ngit = \"http://10.0.0.1/a\"",
            "[workspace.dependencies]\na = { git = \"http://10.0.0.1/a\" }",
            "[patch.crates-io]\na = { git = \"http://10.0.0.1/a\" }",
            "[replace]\n\"a:1.0.0\" = { git = \"http://10.0.0.1/a\" }",
            "[workspace]\nmembers = [\"*\"]",
            "[package]\nworkspace = \"other\"",
            "[dependencies]\na = { path = \"../a\" }",
            "[dependencies]\na = { path = \"/a\" }",
            "not toml",
        ] {
            assert!(check_text(&[("Cargo.toml", manifest)]).is_err(), "{manifest}");
        }
        let inner = "[dependencies]\nb = { git = \"http://10.0.0.1/b\" }\n";
        let outer = "[dependencies]\na = { path = \"a\" }\n";
        let error = check_text(&[("Cargo.toml", outer), ("a/Cargo.toml", inner)]).unwrap_err();
        assert!(error.to_string().contains("\"b\" is from a git repository"), "{error}");
    }
    #[test]
    fn a_path_that_leads_to_no_file_is_the_crates_fault() {
        let long = "x".repeat(300);
        for path in ["Cargo.toml", "nul\\u0000byte", long.as_str(), "folder"] {
            let outer = format!("[dependencies]\na = {{ path = \"{path}\" }}\n");
            let error = check_text(&[("Cargo.toml", &outer), ("folder/Cargo.toml/x", "")]).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{path}: {error}");
        }
    }
}

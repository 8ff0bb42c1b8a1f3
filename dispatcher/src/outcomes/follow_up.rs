//! What follows from a crate's metadata: binaries are to be built, libraries are not.

use cratemill_protocol::{CrateName, Features};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The longest metadata document we read.
pub const MAX_METADATA_BYTES: u64 = 16 << 20;

/// The binaries of a package under one feature variant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binaries {
    pub built: Vec<String>,
    /// Those that want features which the variant does not have.
    pub left_out: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the metadata is not what cargo writes: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("the metadata does not hold the package itself")]
    NoPackage,
}

/// The parts of `cargo metadata` that matter here.
#[derive(Deserialize)]
struct Document {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    targets: Vec<CargoTarget>,
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

/// Finds the binaries of a package in the metadata that a builder made of it.
pub fn binaries(
    json: &[u8],
    krate: &CrateName,
    version: &str,
    features: &Features,
) -> Result<Binaries, Error> {
    let document: Document = serde_json::from_slice(json)?;
    let package = document
        .packages
        .into_iter()
        .find(|package| package.name == **krate && package.version == version)
        .ok_or(Error::NoPackage)?;
    let enabled = enabled(&package.features, features);
    let mut binaries = Binaries::default();
    for target in package.targets.into_iter().filter(|target| target.kind.iter().any(|kind| kind == "bin")) {
        if target.required_features.iter().all(|feature| enabled.contains(feature.as_str())) {
            binaries.built.push(target.name);
        } else {
            binaries.left_out.push(target.name);
        }
    }
    Ok(binaries)
}

/// The features that a variant turns on, those that others imply included.
fn enabled<'a>(declared: &'a BTreeMap<String, Vec<String>>, variant: &'a Features) -> BTreeSet<&'a str> {
    let mut enabled = BTreeSet::new();
    let mut todo: Vec<&str> = variant.names.iter().map(String::as_str).collect();
    if variant.default {
        todo.push("default");
    }
    while let Some(name) = todo.pop() {
        if enabled.insert(name) {
            // `dep:x` and `x/y` turn on dependencies, not features of this package.
            let implied = declared.get(name).into_iter().flatten().map(String::as_str);
            todo.extend(implied.filter(|feature| declared.contains_key(*feature)));
        }
    }
    enabled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(targets: &str, features: &str, variant: &str) -> Binaries {
        let json = format!(
            r#"{{"packages":[{{"name":"other","version":"1.0.0","targets":[{{"name":"x","kind":["bin"]}}]}},
            {{"name":"demo","version":"1.0.0","features":{features},"targets":[{targets}],"id":"x"}}],"version":1}}"#
        );
        let krate = CrateName::parse("demo").unwrap();
        binaries(json.as_bytes(), &krate, "1.0.0", &variant.parse().unwrap()).unwrap()
    }

    #[test]
    fn libraries_have_none() {
        let found = find(r#"{"name":"demo","kind":["lib"]},{"name":"b","kind":["bench"]}"#, "{}", "default");
        assert_eq!(found, Binaries::default());
    }

    #[test]
    fn required_features_follow_the_variant() {
        let targets = r#"{"name":"demo","kind":["bin"]},
            {"name":"cli","kind":["bin"],"required-features":["cli"]},
            {"name":"extra","kind":["bin"],"required-features":["extra"]}"#;
        let features = r#"{"default":["app"],"app":["cli","dep:clap","x/y"],"cli":["app"],"extra":[]}"#;
        for (variant, built, left_out) in [
            ("default", vec!["demo", "cli"], vec!["extra"]),
            ("no-default", vec!["demo"], vec!["cli", "extra"]),
            ("no-default,extra", vec!["demo", "extra"], vec!["cli"]),
        ] {
            let found = find(targets, features, variant);
            assert_eq!(
                (found.built, found.left_out),
                (
                    built.into_iter().map(str::to_owned).collect(),
                    left_out.into_iter().map(str::to_owned).collect()
                ),
                "{variant}"
            );
        }
    }

    #[test]
    fn what_is_no_metadata_is_an_error() {
        let krate = CrateName::parse("demo").unwrap();
        for bad in ["", "[]", r#"{"packages":[]}"#, r#"{"packages":[{"name":"demo"}]}"#] {
            assert!(binaries(bad.as_bytes(), &krate, "1.0.0", &Features::default()).is_err(), "{bad}");
        }
    }
}

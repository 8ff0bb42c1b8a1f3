//! Names that come from outside, parsed at the edge: inside, they are safe as a path segment, a bus token and a file name.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Deref, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a crate name is 1 to 64 ASCII letters, digits, '-' or '_', and starts with a letter")]
    CrateName,
    #[error(
        "a target is 1 to 64 lower-case ASCII letters, digits, '-', '_' or '.', and starts with a letter"
    )]
    Target,
    #[error(
        "an artifact name is 1 to 160 ASCII letters, digits, '.', '_', '+' or '-', and does not start with '.'"
    )]
    ArtifactName,
}

macro_rules! name {
    ($($(#[$doc:meta])* $name:ident, $check:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn parse(text: impl Into<String>) -> Result<Self, Error> {
                let text = text.into();
                if $check(&text) { Ok(Self(text)) } else { Err(Error::$name) }
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )+};
}

name! {
    /// A crate's name as its registry spells it.
    CrateName, is_crate_name,
    /// A target triple, or `any` for what does not depend on one.
    Target, is_target,
    /// The file name of one file that a job produced.
    ArtifactName, is_artifact_name,
}

impl CrateName {
    /// Registries treat names that differ only in case or in `-` and `_` as one.
    pub fn canonical(&self) -> String {
        self.0.to_ascii_lowercase().replace('-', "_")
    }

    /// The path of this crate's file below the root of a sparse index.
    pub fn index_path(&self) -> String {
        let name = self.0.to_ascii_lowercase();
        match name.len() {
            1 => format!("1/{name}"),
            2 => format!("2/{name}"),
            3 => format!("3/{}/{name}", &name[..1]),
            _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
        }
    }
}

impl Target {
    /// The target of jobs whose result is the same everywhere, such as `metadata`.
    pub fn any() -> Self {
        Self("any".into())
    }

    pub fn is_any(&self) -> bool {
        self.0 == "any"
    }
}

fn is_crate_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn is_target(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

fn is_artifact_name(text: &str) -> bool {
    (1..=160).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_paths_follow_the_registry_layout() {
        for (name, path) in [
            ("a", "1/a"),
            ("ab", "2/ab"),
            ("abc", "3/a/abc"),
            ("Hexyl", "he/xy/hexyl"),
            ("a-b_c", "a-/b_/a-b_c"),
        ] {
            assert_eq!(CrateName::parse(name).unwrap().index_path(), path);
        }
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", "1a", "a/b", "..", "a.b", "ä", "a b", "a*", "a>", &"a".repeat(65)] {
            assert_eq!(CrateName::parse(bad), Err(Error::CrateName), "{bad}");
        }
        for bad in ["", "..", ".x", "a/b", "a\0", "a\\b", &"a".repeat(161)] {
            assert_eq!(ArtifactName::parse(bad), Err(Error::ArtifactName), "{bad}");
        }
        for bad in ["", "X86", "x/..", "-a", ".a"] {
            assert_eq!(Target::parse(bad), Err(Error::Target), "{bad}");
        }
    }
}

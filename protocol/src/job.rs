//! What a job is: its kind, states, stages, limits, and how it can end.
//!
//! ```text
//! queued -> assigned -> running -> succeeded | failed | cancelled
//!    ^---------+----------+   (retry: infrastructure, lost)
//! ```

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeSet, fmt, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what}: {text:?}, expected one of {expected}")]
pub struct ParseError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident $what:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ParseError {
                        what: $what,
                        text: text.chars().take(40).collect(),
                        expected: concat!($($word, " "),+).trim_ascii_end(),
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }
    )+};
}

words! {
    /// What a job makes.
    Kind "kind" {
        /// `cargo metadata` JSON; its result decides the follow-up jobs.
        Metadata = "metadata",
        /// The binaries of one target.
        Tarball = "tarball",
        Debian = "debian",
        Rustdoc = "rustdoc",
        Coverage = "coverage",
    }
    JobState "job state" {
        Queued = "queued",
        /// Leased to a builder that has not accepted it yet.
        Assigned = "assigned",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
    }
    /// What a running job is at.
    Stage "stage" {
        Fetch = "fetch",
        Build = "build",
        Package = "package",
        Upload = "upload",
    }
    /// Why a job did not succeed. The first four are the crate's and final for its toolchain; the last two are ours and retried.
    FailureClass "failure class" {
        Build = "build",
        Timeout = "timeout",
        OutOfMemory = "out_of_memory",
        OutputTooLarge = "output_too_large",
        Infrastructure = "infrastructure",
        Lost = "lost",
    }
    /// The earlier in this list, the sooner it is built.
    Priority "priority" {
        OnDemand = "on_demand",
        NewRelease = "new_release",
        Rebuild = "rebuild",
        Backfill = "backfill",
    }
}

impl Kind {
    /// Whether its result depends on a target triple.
    pub fn has_target(self) -> bool {
        !matches!(self, Self::Metadata)
    }

    /// Kinds that today's builders can make.
    pub fn is_supported(self) -> bool {
        matches!(self, Self::Metadata | Self::Tarball)
    }
}

impl JobState {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl FailureClass {
    pub fn is_retried(self) -> bool {
        matches!(self, Self::Infrastructure | Self::Lost)
    }
}

impl Priority {
    /// The number the queue sorts by, lowest first; gaps leave room for more.
    pub fn rank(self) -> i16 {
        match self {
            Self::OnDemand => 10,
            Self::NewRelease => 20,
            Self::Rebuild => 30,
            Self::Backfill => 40,
        }
    }

    pub fn of_rank(rank: i16) -> Option<Self> {
        Self::ALL.iter().copied().find(|priority| priority.rank() == rank)
    }
}

impl TryFrom<i16> for Priority {
    type Error = ParseError;
    fn try_from(rank: i16) -> Result<Self, ParseError> {
        Self::of_rank(rank).ok_or(ParseError {
            what: "priority",
            text: rank.to_string(),
            expected: "10, 20, 30 or 40",
        })
    }
}

/// A feature variant. Its text is canonical: `default`, `default,a,b`, `no-default`, `no-default,a,b`; sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Features {
    pub default: bool,
    pub names: BTreeSet<String>,
}

/// More features than a version in a registry may declare.
const MAX_FEATURES: usize = 300;

impl Default for Features {
    fn default() -> Self {
        Self { default: true, names: BTreeSet::new() }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.default { "default" } else { "no-default" })?;
        self.names.iter().try_for_each(|name| write!(f, ",{name}"))
    }
}

impl FromStr for Features {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError {
            what: "feature variant",
            text: text.chars().take(40).collect(),
            expected: "default | no-default, then feature names, separated by commas",
        };
        let mut parts = text.split(',');
        let default = match parts.next() {
            Some("default" | "") => true,
            Some("no-default") => false,
            _ => return Err(error()),
        };
        let names: BTreeSet<String> = parts.map(str::to_owned).collect();
        if names.len() > MAX_FEATURES || !names.iter().all(|name| is_feature(name)) {
            return Err(error());
        }
        Ok(Self { default, names })
    }
}

fn is_feature(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-+.".contains(&b))
        && !matches!(name, "default" | "no-default")
}

impl TryFrom<String> for Features {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What one job may use on a builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall-clock seconds for the whole job.
    pub wall_s: u32,
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Cores.
    pub cpus: u16,
    /// All files that the job writes, its artifacts included.
    pub output_bytes: u64,
    pub log_bytes: u64,
    /// The `.crate` file.
    pub source_bytes: u64,
    /// What it unpacks to.
    pub unpacked_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_s: 1_800,
            memory_bytes: 8 << 30,
            processes: 1_024,
            cpus: 2,
            output_bytes: 8 << 30,
            log_bytes: 16 << 20,
            source_bytes: 64 << 20,
            unpacked_bytes: 512 << 20,
        }
    }
}

/// How an attempt ended, as its builder saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded {
        timings: Timings,
    },
    Failed {
        class: FailureClass,
        /// One or two sentences for a person.
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<Stage>,
        timings: Timings,
    },
    Cancelled,
}

/// Where the time of an attempt went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    pub fetch_ms: u64,
    pub build_ms: u64,
    pub package_ms: u64,
    pub upload_ms: u64,
    /// The part of the above that cargo itself ran.
    #[serde(default)]
    pub cargo_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_one_spelling() {
        for (text, canonical) in [
            ("", "default"),
            ("default,b,a,b", "default,a,b"),
            ("no-default", "no-default"),
            ("no-default,x-y", "no-default,x-y"),
        ] {
            assert_eq!(text.parse::<Features>().unwrap().to_string(), canonical);
        }
        for bad in ["x", "default,", "default,-Z", "default,default", "no-default,a b", "default,a/b"] {
            assert!(bad.parse::<Features>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_parse_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), *kind);
        }
        assert!("Tarball".parse::<Kind>().unwrap_err().to_string().contains("metadata tarball"));
    }

    #[test]
    fn priorities_sort_as_they_are_declared() {
        assert!(Priority::ALL.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
    }
}

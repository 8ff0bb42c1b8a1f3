//! The registry: its index is read, what it says is brought into the database, and new versions become jobs.
//!
//! [`client`] talks HTTP, [`lines`], [`feed`] and [`template`] parse, [`refresh`] brings one crate up to date,
//! [`watch`] does so for the watched crates, and [`answer`] on request. [`renewal`] keeps the index's configuration.

pub mod answer;
pub mod client;
pub mod feed;
pub mod lines;
pub mod refresh;
pub mod renewal;
pub mod template;
pub mod watch;

use std::{fmt, str::FromStr, time::Duration};

/// Where an index is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexUrl {
    /// Ends with a slash.
    base: reqwest::Url,
    is_default: bool,
}

impl IndexUrl {
    /// As a builder's cargo is to be told; none if the registry is cargo's default.
    pub fn for_builders(&self) -> Option<String> {
        (!self.is_default).then(|| format!("sparse+{}", self.base))
    }
}

impl FromStr for IndexUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = if text == "default" { crates_index::sparse::URL } else { text };
        let error = || "expected `default`, `sparse+http://...` or `sparse+https://...`".to_owned();
        let http = text.strip_prefix("sparse+").ok_or_else(error)?;
        let http = if http.ends_with('/') { http.to_owned() } else { format!("{http}/") };
        let base: reqwest::Url = http.parse().map_err(|_| error())?;
        if !matches!(base.scheme(), "http" | "https") || base.query().is_some() || base.fragment().is_some() {
            return Err(error());
        }
        let is_default = crates_index::sparse::URL.strip_prefix("sparse+") == Some(base.as_str());
        Ok(Self { base, is_default })
    }
}

/// A registry's token: a secret, so it does not show in debug output.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl FromStr for Token {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if good { Ok(Self(text.to_owned())) } else { Err("a token is printable ASCII text".into()) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It says that it has no such thing.
    #[error("the registry does not have it")]
    NotFound,
    /// It asks to be left alone for a while.
    #[error("the registry is busy, try again in {} s", .0.as_secs())]
    Busy(Duration),
    #[error("the registry cannot be asked: {0}")]
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_urls() {
        let default: IndexUrl = "default".parse().unwrap();
        assert_eq!(default.for_builders(), None);
        assert_eq!(crates_index::sparse::URL.parse::<IndexUrl>().unwrap(), default);
        let own: IndexUrl = "sparse+http://127.0.0.1:8080/index".parse().unwrap();
        assert_eq!(own.for_builders().unwrap(), "sparse+http://127.0.0.1:8080/index/");
        for bad in ["", "http://x/", "sparse+ftp://x/", "sparse+http://x/?q", "git+https://x/"] {
            assert!(bad.parse::<IndexUrl>().is_err(), "{bad}");
        }
    }
}

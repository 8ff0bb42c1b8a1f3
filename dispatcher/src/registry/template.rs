//! The `config.json` of an index, and the download URL that it describes.

use cratemill_protocol::{CrateName, Sha256Hex};
use serde::Deserialize;

/// What stands at the root of an index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct IndexConfig {
    pub dl: String,
    /// Index and downloads want the token.
    #[serde(default, rename = "auth-required")]
    pub auth_required: bool,
}

const MARKERS: [&str; 5] = ["{crate}", "{version}", "{prefix}", "{lowerprefix}", "{sha256-checksum}"];

impl IndexConfig {
    /// Where the `.crate` file of a version is.
    pub fn source(&self, krate: &CrateName, version: &str, sha256: &Sha256Hex) -> String {
        if !MARKERS.iter().any(|marker| self.dl.contains(marker)) {
            return format!("{}/{krate}/{version}/download", self.dl.trim_end_matches('/'));
        }
        self.dl
            .replace("{crate}", krate)
            .replace("{version}", version)
            .replace("{prefix}", &prefix(krate))
            .replace("{lowerprefix}", &prefix(&krate.to_ascii_lowercase()))
            .replace("{sha256-checksum}", &sha256.to_string())
    }
}

/// The folders of a crate's index entry, with the name as it is written.
fn prefix(name: &str) -> String {
    match name.len() {
        1 => "1".to_owned(),
        2 => "2".to_owned(),
        3 => format!("3/{}", &name[..1]),
        _ => format!("{}/{}", &name[..2], &name[2..4]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_replaced() {
        let sum = Sha256Hex::of(b"");
        for (dl, name, expected) in [
            ("https://r/api/v1/crates", "hexyl", "https://r/api/v1/crates/hexyl/1.0.0+b/download".to_owned()),
            ("https://r/", "a", "https://r/a/1.0.0+b/download".to_owned()),
            ("https://r/{crate}-{version}.crate", "Ab", "https://r/Ab-1.0.0+b.crate".to_owned()),
            ("https://r/{prefix}/{lowerprefix}/x", "HeXyl", "https://r/He/Xy/he/xy/x".to_owned()),
            ("https://r/{prefix}/{lowerprefix}", "AbC", "https://r/3/A/3/a".to_owned()),
            ("https://r/{prefix}/{crate}", "A", "https://r/1/A".to_owned()),
            ("https://r/{sha256-checksum}", "ab", format!("https://r/{sum}")),
        ] {
            let config = IndexConfig { dl: dl.into(), auth_required: false };
            assert_eq!(config.source(&CrateName::parse(name).unwrap(), "1.0.0+b", &sum), expected);
        }
    }

    #[test]
    fn config_json_is_read() {
        let text = r#"{"dl":"https://r","api":"https://a","auth-required":true,"later":1}"#;
        let config: IndexConfig = serde_json::from_str(text).unwrap();
        assert!(config.auth_required);
        assert!(serde_json::from_str::<IndexConfig>("{}").is_err());
    }
}

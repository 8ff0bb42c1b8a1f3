//! An index entry: one JSON object a line, one line a version.

use cratemill_protocol::{CrateName, Sha256Hex};
use cratemill_store::versions::Published;
use semver::Version;

/// The longest version we take: it becomes part of paths and file names.
const MAX_VERSION_CHARS: usize = 64;

/// What an index entry says, and how many of its lines were no good.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name as the registry spells it.
    pub krate: Option<CrateName>,
    pub versions: Vec<Published>,
    pub malformed: usize,
}

/// Reads what can be read: a registry holds lines that no cargo of today would publish.
pub fn parse(wanted: &CrateName, body: &[u8]) -> Entry {
    let mut entry = Entry { krate: None, versions: Vec::new(), malformed: 0 };
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        match parse_line(wanted, line) {
            Some((krate, published)) => {
                entry.krate.get_or_insert(krate);
                entry.versions.push(published);
            }
            None => entry.malformed += 1,
        }
    }
    // One version twice would be one too many for a statement that inserts them all; the later line stands.
    let mut seen = std::collections::HashSet::new();
    entry.versions.reverse();
    entry.versions.retain(|published| seen.insert(published.version.clone()));
    entry.versions.reverse();
    entry
}

fn parse_line(wanted: &CrateName, line: &[u8]) -> Option<(CrateName, Published)> {
    let line: crates_index::Version = serde_json::from_slice(line).ok()?;
    let krate = CrateName::parse(line.name()).ok()?;
    let version = Version::parse(line.version()).ok()?;
    let good = krate.canonical() == wanted.canonical() && line.version().len() <= MAX_VERSION_CHARS;
    let sha256 = Sha256Hex::from_bytes(*line.checksum());
    let published = Published { version: version.to_string(), sha256, yanked: line.is_yanked() };
    good.then_some((krate, published))
}

/// The version to begin with when a crate is seen for the first time: the newest stable one that is not yanked, or
/// where there is none, the newest that is not.
pub fn newest(versions: &[Published]) -> Option<&Published> {
    versions
        .iter()
        .filter(|published| !published.yanked)
        .filter_map(|published| Some((Version::parse(&published.version).ok()?, published)))
        .max_by(|(a, _), (b, _)| (a.pre.is_empty(), a).cmp(&(b.pre.is_empty(), b)))
        .map(|(_, published)| published)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(name: &str, version: &str, yanked: bool) -> String {
        let sum = Sha256Hex::of(version.as_bytes());
        format!(
            r#"{{"name":"{name}","vers":"{version}","deps":[],"cksum":"{sum}","features":{{}},"yanked":{yanked},"x":1}}"#
        )
    }

    fn versions(entry: &Entry) -> Vec<&str> {
        entry.versions.iter().map(|published| published.version.as_str()).collect()
    }

    #[test]
    fn good_lines_are_kept_and_bad_ones_counted() {
        let wanted = CrateName::parse("demo-tool").unwrap();
        let body = [
            line("Demo_Tool", "0.1.0", false),
            "{not json".into(),
            line("other", "0.2.0", false),
            line("Demo_Tool", "not-semver", false),
            line("Demo_Tool", &format!("1.0.0+{}", "x".repeat(80)), false),
            String::new(),
            line("Demo_Tool", "0.3.0", true),
            line("Demo_Tool", "0.1.0", true),
        ]
        .join("\n");
        let entry = parse(&wanted, body.as_bytes());
        assert_eq!(entry.krate.as_deref(), Some("Demo_Tool"));
        assert_eq!(versions(&entry), ["0.3.0", "0.1.0"]);
        assert_eq!(entry.malformed, 4);
        assert!(entry.versions[1].yanked, "the later line stands");
    }

    #[test]
    fn newest_is_stable_and_not_yanked() {
        let wanted = CrateName::parse("a").unwrap();
        let newest_of = |lines: &[(&str, bool)]| {
            let body: Vec<String> =
                lines.iter().map(|(version, yanked)| line("a", version, *yanked)).collect();
            newest(&parse(&wanted, body.join("\n").as_bytes()).versions).map(|p| p.version.clone())
        };
        assert_eq!(
            newest_of(&[("1.9.0", false), ("1.10.0", false), ("2.0.0-rc.1", false), ("3.0.0", true)])
                .unwrap(),
            "1.10.0"
        );
        assert_eq!(newest_of(&[("0.1.0-a.1", false), ("0.1.0-a.2", false)]).unwrap(), "0.1.0-a.2");
        assert_eq!(newest_of(&[("0.1.0", true)]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
            parse(&CrateName::parse("a").unwrap(), &body);
        }
    }
}
